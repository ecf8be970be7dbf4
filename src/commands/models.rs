//! `mlxbatch models`: which models can be run.
//!
//! Owns the layout. What is served is in the tables that models are read by.

use std::io::{self, Write};

use super::{Outcome, written};
use crate::models::{gguf_architectures, model_types};

const REST: &str = "
The type is the 'model_type' in a model's config.json; what sees or hears is left out, and requests with
pictures or sound are refused. GGUF files are served in all block types.

Weights: float32, float16 and bfloat16; MLX's quantisation in all modes (affine of 2, 3, 4, 5, 6 and 8 bits,
mxfp4, nvfp4, mxfp8), matrix by matrix; as their publishers store them: gpt-oss's mxfp4, fp8 with factors by block,
row or matrix, ModelOpt's nvfp4, AWQ's 4 bits, GPTQ's 2, 3, 4 and 8 bits, and compressed-tensors' whole numbers,
fp8, nvfp4, mxfp4 and mxfp8. They stay packed, but fp8, and GPTQ's with groups out of order (desc_act).

Kept in the cache: keys and values of each layer that has its own, whatever its shape (one latent, where attention is
to latents); for recurrent layers their state at the ends of messages and where prompts part.
";

/// Prints the table.
pub fn print() -> anyhow::Result<Outcome> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(render().as_bytes()).and_then(|()| stdout.flush()), Outcome::Done)
}

fn render() -> String {
    let types = table("TYPE", model_types());
    let files = table("GGUF", gguf_architectures());
    format!("{types}\n{files}{REST}")
}

/// A line for each name.
fn table(title: &str, rows: impl Iterator<Item = (&'static str, &'static str)>) -> String {
    let width = model_types().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = format!("{title:width$}  MODELS\n");
    let mut rows: Vec<_> = rows.collect();
    rows.sort_unstable();
    for (name, about) in rows {
        text += &format!("{name:width$}  {about}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_and_architecture_has_a_line_with_models_of_it() {
        let text = render();
        for (name, about) in model_types().chain(gguf_architectures()) {
            let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(name));
            assert!(lines.any(|line| line.ends_with(about) && line.len() <= 110), "{name}: {about}");
        }
    }
}
