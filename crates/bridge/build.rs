//! Compiles the C++ side of the bridge, once, into the static library.

fn main() {
    cxx_build::bridge("src/lib.rs").std("c++17").compile("hps-bridge-glue");
    println!("cargo:rerun-if-changed=src/lib.rs");
}
