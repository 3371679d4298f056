// Memory for packed weights.
#pragma once

#include <cstddef>
#include <memory>

namespace corral {

// Undefined bytes, 64-byte aligned, on huge pages where the system has them: with small ones a step that reads all
// weights once waits for page tables. Matrices share pages one after the other, which a step then reads in order.
// Pages become resident as they are written and go back when the last of their neighbours is dropped.
std::shared_ptr<std::byte> allocate_weights(size_t bytes);

}  // namespace corral
