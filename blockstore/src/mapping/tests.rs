//! The mapping against a map of blocks.
