//! Compiles the event schema. protox is a protobuf compiler in Rust, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["llm_proxy/event/v1/event.proto"], ["proto"])?;
    // Ordered maps, so that equal events encode to equal bytes.
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
