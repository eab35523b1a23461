//! The allocator against a set of numbers.
