#include "cli/command_line.hpp"

int main(int argc, char** argv) { return tplimit::cli::command_line(argc, argv); }
