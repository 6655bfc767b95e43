//! Compiles the `.proto` files, without a protoc.

use std::error::Error;
use std::path::Path;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // What is published is encoded by its descriptors, which `wire/encoding.rs` holds.
    let published = protox::compile(["proto/quaymaster.proto"], ["proto"])?;
    let out = Path::new(&std::env::var("OUT_DIR")?).join("quaymaster.desc");
    std::fs::write(out, published.encode_to_vec())?;
    let files = protox::compile(["proto/cri.proto", "proto/containerd.proto"], ["proto"])?;
    // The server's half is for the fakes of the tests; what is not called is not linked.
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds(files)?;
    Ok(())
}
