// Where a statement ends: at a line end, unless the parser stands inside brackets or behind a comma, where it does not
// ask for one, or an `else` follows.
#include <stdbool.h>

#include "tree_sitter/parser.h"

enum Token { kNewline };

static bool is_blank(int32_t c) { return c == ' ' || c == '\t' || c == '\r'; }

static bool at_else(TSLexer* lexer) {
  for (const char* c = "else"; *c != '\0'; ++c, lexer->advance(lexer, false))
    if (lexer->lookahead != *c) return false;
  const int32_t next = lexer->lookahead;
  return is_blank(next) || next == '\n' || next == '{';
}

bool tree_sitter_tplimit_external_scanner_scan(void* payload, TSLexer* lexer, const bool* valid) {
  (void)payload;
  if (!valid[kNewline]) return false;
  while (is_blank(lexer->lookahead)) lexer->advance(lexer, true);
  if (lexer->lookahead != '\n') return false;
  lexer->advance(lexer, false);
  lexer->mark_end(lexer);
  lexer->result_symbol = kNewline;
  for (;;) {  // the next word may be in a later line, behind comments
    const int32_t c = lexer->lookahead;
    if (is_blank(c) || c == '\n')
      lexer->advance(lexer, false);
    else if (c == '#')
      while (lexer->lookahead != '\n' && !lexer->eof(lexer)) lexer->advance(lexer, false);
    else
      return !at_else(lexer);
  }
}

void* tree_sitter_tplimit_external_scanner_create(void) { return NULL; }
void tree_sitter_tplimit_external_scanner_destroy(void* payload) { (void)payload; }
unsigned tree_sitter_tplimit_external_scanner_serialize(void* payload, char* buffer) {
  (void)payload;
  (void)buffer;
  return 0;
}
void tree_sitter_tplimit_external_scanner_deserialize(void* payload, const char* buffer,
                                                      unsigned length) {
  (void)payload;
  (void)buffer;
  (void)length;
}
