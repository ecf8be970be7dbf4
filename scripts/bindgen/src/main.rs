//! Writes the bindings.rs that mlx-sys's build script would write on macOS.
//!
//! It owns nothing but the two Linux differences (half-type macros and typedefs that mlx-c
//! declares on Arm only); every other setting is mlx-sys's own `bindgen_config.rs`, compiled in
//! from the crate that cargo has unpacked (`MLX_SYS_DIR`, set by scripts/setup.sh).

use std::path::Path;

mod bindgen_config {
    include!(concat!(env!("MLX_SYS_DIR"), "/src/bindgen_config.rs"));
}

const HALF_TYPES: &str = "\
#if !defined(__aarch64__)
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef __fp16 float16_t;
typedef unsigned short bfloat16_t;
#endif
";

fn main() {
    let output = std::env::args().nth(1).expect("usage: mlx-c-bindgen OUTPUT");
    let mlx_c_root = Path::new(env!("MLX_SYS_DIR")).join("src/mlx-c");
    let headers = bindgen_config::discover_headers(&mlx_c_root).expect("mlx-c headers are there");
    let prelude = Path::new(&output).with_extension("h");
    std::fs::write(&prelude, HALF_TYPES).expect("the output folder is writable");
    bindgen_config::builder(&mlx_c_root, &headers)
        .clang_arg("-include")
        .clang_arg(prelude.display().to_string())
        .generate()
        .expect("bindgen reads the mlx-c headers")
        .write_to_file(&output)
        .expect("the output file is writable");
}
