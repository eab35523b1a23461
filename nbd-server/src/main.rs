//! `basalt`: arguments, open the store, serve, stop in order.
fn main() {}
