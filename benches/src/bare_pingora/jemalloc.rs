//! `bare-pingora-jemalloc`: the same proxy with llm-proxy's allocator, so that a table shows how much of the difference
//! is the allocator's.

mod proxy;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    proxy::run()
}
