// The grammar of tplimit for editors: that of src/syntax/parser.cpp without its errors.  `tree-sitter generate` makes
// src/parser.c of it; the test `tree_sitter` parses every program of the repository with that.

// How tightly operators bind, the loosest first, as enum Level of the parser.
const level = { comparison: 1, sum: 2, product: 3, sign: 4, matmul: 5, power: 6, call: 7 };

/// One or more, between commas; lines go on behind a comma.
const some = (item) => seq(item, repeat(seq(",", item)));
/// Any number between brackets, a comma behind the last one allowed.
const bracketed = (open, item, close) => seq(open, optional(seq(some(item), optional(","))), close);

module.exports = grammar({
  name: "tplimit",
  word: ($) => $.identifier,
  externals: ($) => [$._newline],
  extras: ($) => [/\s/, $.comment],
  supertypes: ($) => [$.statement, $.expression],

  rules: {
    program: ($) => $._statements,
    _statements: ($) =>
      choice(
        repeat1($._end),
        seq(repeat($._end), $.statement, repeat(seq(repeat1($._end), $.statement)), repeat($._end)),
      ),
    _end: ($) => choice($._newline, ";"),
    block: ($) => seq("{", optional($._statements), "}"),

    // ---- statements
    statement: ($) =>
      choice(
        $.width, $.const, $.depth, $.data, $.param, $.parametrization, $.function, $.for, $.if, $.assert, $.import,
        $.step, $.report, $.expect, $.return, $.assignment, $.update,
      ),
    width: ($) => seq("width", some($.width_item)),
    width_item: ($) => seq(field("name", $.identifier), optional(seq("=", $._width_value))),
    _width_value: ($) => choice($.expression, seq($.number, $.identifier)), // 2 n
    const: ($) => seq("const", field("name", $.identifier), "=", field("value", $.expression)),
    depth: ($) => seq("depth", field("name", $.identifier), "=", field("value", $.expression)),
    data: ($) => seq("data", some(field("name", $.identifier)), "=", field("value", $.expression)),
    param: ($) =>
      seq(
        choice("param", "random"), field("name", $.identifier), ":", optional(field("role", $.identifier)),
        field("axes", $.axes), optional(seq("~", field("law", $.call))), repeat(seq(",", $.option)),
      ),
    axes: ($) => bracketed("[", $.expression, "]"),
    option: ($) => seq(field("name", $.identifier), "=", field("value", $.expression)),
    parametrization: ($) => seq("parametrization", choice($.identifier, $.call)),
    function: ($) =>
      seq(
        choice("fn", "model"), field("name", $.identifier), field("parameters", $.parameters),
        field("body", choice(seq("=", $.expression), $.block)),
      ),
    parameters: ($) => bracketed("(", $.parameter, ")"),
    parameter: ($) => seq(field("name", $._name), optional(seq("=", field("default", $._argument_value)))),
    for: ($) =>
      seq("for", field("variable", $._name), "in", field("range", $._argument_value), field("body", $.block)),
    if: ($) =>
      seq("if", field("condition", $.expression), $.block, optional(seq("else", choice($.if, $.block)))),
    assert: ($) => seq("assert", $.expression, optional(seq(",", $.expression))),
    import: ($) => seq("import", field("path", $.string), optional(seq("as", field("name", $.identifier)))),
    step: ($) => seq("step", some($.call)),
    report: ($) => seq("report", some(choice(field("item", $.report_item), $.expression))),
    report_item: ($) => seq(field("name", $._name), "=", field("value", $.expression)),
    expect: ($) => seq("expect", $.expression, "within", $.expression),
    return: ($) => seq("return", some($.expression)),
    assignment: ($) => seq(some(field("name", $._name)), "=", some(field("value", $.expression))),
    update: ($) =>
      seq(field("target", choice($._name, $.index)), choice("+=", "-=", "*="), field("value", $.expression)),

    // ---- expressions
    expression: ($) =>
      choice(
        $._name, $.number, $.string, $.boolean, $.parenthesised, $.tuple, $.list, $.map, $.call, $.index,
        $.transpose, $.sign, $.binary,
      ),
    binary: ($) =>
      choice(
        ...[
          [prec.left, level.comparison, choice("<", "<=", ">", ">=", "==", "!=")],
          [prec.left, level.sum, choice("+", "-")],
          [prec.left, level.product, choice("*", "/")],
          [prec.right, level.matmul, "@"],
          [prec.right, level.power, "^"],
        ].map(([side, binds, operator]) =>
          side(binds, seq(field("left", $.expression), field("operator", operator), field("right", $.expression))),
        ),
      ),
    sign: ($) => prec(level.sign, seq(choice("-", "+"), $.expression)),
    transpose: ($) => prec(level.call, seq($.expression, "'")),
    index: ($) => prec(level.call, seq(field("value", $.expression), bracketed("[", $._index_item, "]"))),
    _index_item: ($) => choice($.expression, $.range, $.open_range),
    call: ($) =>
      prec(
        level.call,
        seq(
          field("function", choice($.identifier, alias("step", $.identifier))),
          field("arguments", $.arguments),
        ),
      ),
    arguments: ($) => bracketed("(", choice($._argument_value, $.named_argument), ")"),
    named_argument: ($) => seq(field("name", $._name), "=", field("value", $._argument_value)),
    _argument_value: ($) => choice($.expression, $.range),
    range: ($) => seq($.expression, "..", $.expression, optional(seq("by", $.expression))),
    open_range: ($) =>
      choice(seq(optional($.expression), "..", optional(seq("by", $.expression))), seq("..", $.expression, optional(seq("by", $.expression)))),
    parenthesised: ($) => seq("(", $.expression, ")"),
    tuple: ($) => seq("(", choice(seq($.expression, ","), seq($.expression, repeat1(seq(",", $.expression)), optional(","))), ")"),
    list: ($) => bracketed("[", $.expression, "]"),
    map: ($) => bracketed("{", $.entry, "}"),
    entry: ($) => seq(field("key", $.expression), ":", field("value", $.expression)),

    // ---- tokens
    _name: ($) => choice($.identifier, alias("depth", $.identifier)), // a keyword before a name only
    identifier: () => /[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*/,
    number: () => /([0-9]+(\.[0-9]+)?|\.[0-9]+)([eE][+-]?[0-9]+)?/,
    string: () => /"([^"\\\r\n]|\\["\\nt])*"/,
    boolean: () => choice("true", "false"),
    comment: () => /#[^\r\n]*/,
  },
});
