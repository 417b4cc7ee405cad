#pragma once

namespace tplimit {

/// Thrown where work was asked to stop.
struct Stopped {};

}  // namespace tplimit
