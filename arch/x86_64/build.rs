//! Links the bootable program at a fixed address, laid out by `src/hw/image.ld`.

fn main() {
    println!("cargo::rerun-if-changed=src/hw/image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    for argument in [&format!("-T{root}/src/hw/image.ld"), "-static", "-znorelro", "-zmax-page-size=4096"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
