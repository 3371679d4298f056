"""What runs a Program: native (C++, for CPUs) and reference (numpy, the definition of correct)."""
