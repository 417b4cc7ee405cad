#pragma once

namespace tplimit::cli {

/// The program `tplimit`, as main calls it, and `python -m tplimit`: reads the arguments, prints,
/// and returns the exit code.
int command_line(int argc, char** argv);

}  // namespace tplimit::cli
