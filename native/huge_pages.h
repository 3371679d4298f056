// Memory on pages of 2 MB, where the system has them: with small ones large arrays wait for page tables.
#pragma once

#include <cstddef>

namespace corral {

constexpr size_t kHugePage = size_t{2} << 20;

// Asks for huge pages; where they are refused, small ones do.
void advise_huge_pages(void* memory, size_t bytes);

// Undefined bytes from a huge page's boundary on, for std::free. Throws std::bad_alloc.
void* allocate_huge_pages(size_t bytes);

}  // namespace corral
