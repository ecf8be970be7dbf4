mod common;
use mlxbatch::{mlx::*, models::*};
use serde_json::Value;
use std::path::Path;
#[test]
fn all() {
    let root = std::env::var("ADAPTERS").unwrap();
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(text) = std::fs::read_to_string(dir.join("golden.json")) else { continue };
        let golden: Value = serde_json::from_str(&text).unwrap();
        let base = golden["base"].as_str().unwrap();
        let folder = Path::new("fixtures").join(base);
        let spec = read_config(&folder.join("config.json")).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|x| x == "safetensors"))
            .collect();
        files.sort();
        let weights = WeightSource::Safetensors(files);
        let adapter = match Adapter::read(&dir, &spec) {
            Ok(a) => a,
            Err(e) => {
                println!("{name}: READ {e}");
                continue;
            }
        };
        if !adapter.warnings.is_empty() {
            println!("{name}: warns {:?}", adapter.warnings);
        }
        for device in ComputeDevice::KINDS {
            for is_fused in [false, true] {
                let used = UsedAdapter { adapter: &adapter, is_fused };
                match LoadedModel::load_adapted(&spec, &weights, Some(used), device, ComputeDtype::Float32) {
                    Err(e) => println!("{name}: LOAD {e}"),
                    Ok(loaded) => {
                        let mut runner = MlxRunner::new(loaded, u64::MAX);
                        let mut worst = 0.0f64;
                        let mut moved = 1e9f64;
                        for p in golden["prompts"].as_array().unwrap() {
                            let ids: Vec<u32> = p["prompt_ids"]
                                .as_array()
                                .unwrap()
                                .iter()
                                .map(|x| x.as_u64().unwrap() as u32)
                                .collect();
                            if ids.len() + 1 > spec.max_context {
                                continue;
                            }
                            let ours = runner.next_log_probabilities(&ids).unwrap();
                            for (a, b) in ours.iter().zip(p["last_logprobs"].as_array().unwrap()) {
                                worst = worst.max((f64::from(*a) - b.as_f64().unwrap()).abs());
                            }
                            moved = moved.min(p["moved"].as_f64().unwrap());
                        }
                        println!(
                            "{name}: {} {:?} fused {is_fused} worst {worst:.1e} moved {moved:.1e} ref {}",
                            if worst < 1e-3 { "ok" } else { "BAD" },
                            device,
                            golden["reference"]
                        );
                    }
                }
            }
        }
    }
}
