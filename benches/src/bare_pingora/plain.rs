//! `bare-pingora`: the yardstick, with the allocator a Rust program has when nobody chooses one.

mod proxy;

fn main() {
    proxy::run()
}
