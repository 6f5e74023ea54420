//! Compiles the .proto files with a pure-Rust compiler: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["delta.proto", "identity.proto", "questions.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".meridian.delta.v1.Resource.body")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(files)?;
    Ok(())
}
