["width" "const" "depth" "data" "param" "random" "parametrization" "fn" "model"] @keyword
["for" "in" "by"] @keyword.repeat
["if" "else" "assert"] @keyword.conditional
["import" "as"] @keyword.import
["step" "report" "expect" "within"] @keyword
"return" @keyword.return

(comment) @comment
(string) @string
(number) @number
(boolean) @boolean

(identifier) @variable
((identifier) @constant.builtin (#match? @constant.builtin "^(pi|inf|None)$"))
(call function: (identifier) @function.call)
(function name: (identifier) @function)
(parameter name: (identifier) @variable.parameter)
(named_argument name: (identifier) @variable.parameter)
(option name: (identifier) @variable.parameter)
(const name: (identifier) @constant)
(depth name: (identifier) @constant)
(param name: (identifier) @variable.member)
(param role: (identifier) @attribute)
(parametrization (identifier) @attribute)
(report_item name: (identifier) @label)
(import name: (identifier) @module)

["+" "-" "*" "/" "^" "@" "'" "<" "<=" ">" ">=" "==" "!=" "=" "+=" "-=" "*=" ".." "~"] @operator
["(" ")" "[" "]" "{" "}"] @punctuation.bracket
["," ":" ";"] @punctuation.delimiter
