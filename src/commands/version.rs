//! `mlxbatch --version`, and what `-v` adds to it.
//!
//! Owns the layout. The facts about MLX and the device come from the modules that know them.

use std::io::{self, Write};

use super::{Outcome, written};

/// Prints the version, and for `is_verbose` one line per fact.
pub fn print(is_verbose: bool) -> anyhow::Result<Outcome> {
    if is_verbose {
        // Tells of what a run would compute with.
        crate::mlx::restart_with_better_kernels();
    }
    let facts = if is_verbose { build_facts() } else { Vec::new() };
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(render(&facts).as_bytes()).and_then(|()| stdout.flush()), Outcome::Done)
}

fn build_facts() -> Vec<(String, String)> {
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    let mut facts = vec![("system".into(), system)];
    facts.extend(crate::mlx::version_facts());
    facts
}

/// The version line, then the facts in aligned columns.
fn render(facts: &[(String, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("mlxbatch {}\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in facts {
        text += &format!("{name:width$}  {value}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_in_columns() {
        let facts = [("MLX".into(), "0.32".into()), ("device".into(), "CPU".into())];
        let expected = format!("mlxbatch {}\nMLX     0.32\ndevice  CPU\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(render(&facts), expected);
    }
}
