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
    let sources = [
        "proto/cri.proto",
        "proto/containerd.proto",
        "proto/containerd_containers.proto",
        "proto/containerd_namespaces.proto",
        "proto/containerd_tasks.proto",
        "proto/containerd_version.proto",
    ];
    let files = protox::compile(sources, ["proto"])?;
    // The server's half is for the fakes of the tests; what is not called is not linked.
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds(files)?;
    Ok(())
}
