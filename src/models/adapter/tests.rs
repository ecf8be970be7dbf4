use std::fs;

use serde_json::json;

use super::*;
use crate::models::read_config;

fn spec_of(base: &str) -> ModelSpec {
    read_config(&Path::new("fixtures").join(base).join("config.json")).unwrap()
}

/// A copy of an adapter's folder that a test may change.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(adapter: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(Path::new("fixtures/adapters").join(adapter)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        Self(folder)
    }

    fn config(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.0.path().join(CONFIG_FILE)).unwrap()).unwrap()
    }

    fn set(&self, pointer: &str, value: Value) {
        let mut config = self.config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        fs::write(self.0.path().join(CONFIG_FILE), config.to_string()).unwrap();
    }

    /// Writes the weight file anew, as `change` leaves its tensors: names, shapes and bytes of float32.
    fn change_tensors(&self, file: &str, change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) {
        let path = self.0.path().join(file);
        let bytes = fs::read(&path).unwrap();
        let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = stored
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (shape, data))| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
            (name.as_str(), view.unwrap())
        });
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn read(&self, base: &str) -> Result<Adapter, ConfigError> {
        Adapter::read(self.0.path(), &spec_of(base))
    }

    fn error(&self, base: &str) -> String {
        self.read(base).unwrap_err().to_string()
    }
}

#[test]
fn updates_are_paired_with_shapes_and_scales_of_both_programs() {
    let adapter = Copy::of("llama-qv").read("tiny-llama").unwrap();
    assert_eq!((adapter.kind, adapter.writer), (AdapterKind::Lora, AdapterWriter::MlxLm));
    assert_eq!(adapter.updates.len(), 6);
    let first = &adapter.updates[0];
    assert_eq!(first.path, "model.layers.1.self_attn.q_proj");
    assert_eq!(first.shape, UpdateShape { num_matrices: None, rank: 4, inputs: 32, outputs: 32 });
    assert_eq!(first.scale, 20.0);
    // Of each layer, queries and values: (32 + 32 + 32 + 16) · 4.
    assert_eq!(adapter.num_elements(), 3 * 112 * 4);
    assert_eq!(adapter.num_updated_elements(false), 3 * 32 * (32 + 16));
    assert_eq!(adapter.num_updated_elements(true), 0);

    let adapter = Copy::of("qwen2-peft-dora").read("tiny-qwen2").unwrap();
    assert_eq!((adapter.kind, adapter.writer), (AdapterKind::Dora, AdapterWriter::Peft));
    let update = |path: &str| {
        let update = adapter.updates.iter().find(|update| update.path == format!("model.layers.{path}"));
        update.map(|update| (update.shape.rank, update.scale)).unwrap()
    };
    // r 2 and alpha 4, but for what the patterns say.
    assert_eq!(update("3.mlp.up_proj"), (2, 2.0));
    assert_eq!(update("2.mlp.up_proj"), (2, 3.5));
    assert_eq!(update("1.self_attn.q_proj"), (3, 4.0 / 3.0));
    assert_eq!(update("2.self_attn.q_proj"), (2, 2.0));
    assert_eq!(update("0.self_attn.v_proj"), (2, 1.5));
    assert_eq!(update("0.mlp.down_proj"), (1, 4.0));
    let replaced: Vec<&str> = adapter.replaced.iter().map(|weight| weight.name.as_str()).collect();
    assert_eq!(replaced.len(), 4);
    assert_eq!(replaced[0], "model.layers.0.input_layernorm.weight");

    let stabilised = Copy::of("phi3-peft").read("tiny-phi3").unwrap();
    assert_eq!(stabilised.updates[0].scale, 3.0);
    let experts = Copy::of("qwen3_moe-4bit-all").read("tiny-qwen3_moe-4bit").unwrap();
    let of_experts = experts.updates.iter().find(|update| update.path.ends_with("switch_mlp.down_proj"));
    let expected = UpdateShape { num_matrices: Some(8), rank: 1, inputs: 32, outputs: 64 };
    assert_eq!(of_experts.unwrap().shape, expected);
    let biases = Copy::of("qwen2-peft-bias").read("tiny-qwen2").unwrap();
    assert_eq!(biases.replaced[0].name, "model.layers.0.self_attn.q_proj.bias");
}

#[test]
fn settings_that_cannot_be_are_refused_by_file_and_key() {
    let cases = [
        ("llama-qv", "/lora_parameters/rank", json!(0), "'rank' must lie between"),
        ("llama-qv", "/lora_parameters/rank", json!(1_u64 << 60), "'rank' must lie between"),
        ("llama-qv", "/lora_parameters/rank", json!("4"), "'rank' must be a positive whole number"),
        ("llama-qv", "/lora_parameters/scale", json!(1e300), "'lora_parameters.scale'"),
        ("llama-qv", "/lora_parameters/scale", Value::Null, "'scale' is missing"),
        ("llama-qv", "/lora_parameters/keys", json!([1]), "'lora_parameters.keys' must be a list"),
        ("llama-qv", "/lora_parameters", json!([]), "'lora_parameters' must be an object"),
        ("llama-qv", "/lora_parameters", Value::Null, "'lora_parameters' is missing"),
        ("llama-qv", "/num_layers", json!(2.5), "'num_layers' must be a whole number"),
        ("llama-qv", "/fine_tune_type", json!("loha"), "'fine_tune_type' must be lora, dora or full"),
        ("llama-qv", "/use_dora", json!(true), "'use_dora' and 'fine_tune_type' contradict"),
        ("phi3-peft", "/peft_type", json!("IA3"), "'peft_type' = \"IA3\" is not supported"),
        ("phi3-peft", "/r", json!(0), "'r' must lie between"),
        ("phi3-peft", "/lora_alpha", json!("8"), "'lora_alpha' must be a number"),
        ("phi3-peft", "/lora_alpha", json!(1e300), "'lora_alpha' must be a number in the range"),
        ("phi3-peft", "/rank_pattern", json!({"q(": 3}), "'rank_pattern.q('"),
        ("phi3-peft", "/rank_pattern", json!({"qkv_proj": -3}), "'rank_pattern.qkv_proj'"),
        ("phi3-peft", "/alpha_pattern", json!({"o_proj": 1e300}), "'alpha_pattern.o_proj'"),
        ("phi3-peft", "/alpha_pattern", json!(7), "'alpha_pattern' must be an object"),
        ("phi3-peft", "/target_modules", json!([7]), "'target_modules' must be"),
        ("phi3-peft", "/layers_to_transform", json!(["a"]), "'layers_to_transform' must be"),
        ("phi3-peft", "/bias", json!("some"), "'bias' must be none, all or lora_only"),
        ("phi3-peft", "/init_lora_weights", json!("pissa"), "'init_lora_weights' = \"pissa\""),
        ("phi3-peft", "/task_type", json!("SEQ_CLS"), "'task_type' = \"SEQ_CLS\""),
        ("phi3-peft", "/lora_bias", json!(true), "'lora_bias' = true"),
        ("phi3-peft", "/target_parameters", json!("experts.down_proj"), "'target_parameters'"),
        ("phi3-peft", "/layer_replication", json!([[0, 4], [2, 5]]), "'layer_replication'"),
    ];
    for (adapter, pointer, value, expected) in cases {
        let copy = Copy::of(adapter);
        copy.set(pointer, value);
        let base = if adapter == "phi3-peft" { "tiny-phi3" } else { "tiny-llama" };
        let error = copy.error(base);
        assert!(error.contains(expected) && error.contains(CONFIG_FILE), "{pointer}: {error}");
    }
    for text in ["[]", "{", "3"] {
        let copy = Copy::of("llama-qv");
        fs::write(copy.0.path().join(CONFIG_FILE), text).unwrap();
        assert!(copy.error("tiny-llama").contains(CONFIG_FILE), "{text}");
    }
}

/// Shapes and bytes by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

#[test]
fn what_the_settings_do_not_speak_of_is_refused_by_name() {
    let cases = [
        ("llama-qv", "/num_layers", json!(2), "model.layers.1.self_attn.q_proj", "'num_layers'"),
        (
            "llama-qv",
            "/lora_parameters/keys",
            json!(["self_attn.q_proj"]),
            "v_proj",
            "'lora_parameters.keys'",
        ),
        ("llama-qv", "/lora_parameters/rank", json!(8), "lora_a", "adapter_config.json says 8"),
        ("llama-qv", "/fine_tune_type", json!("dora"), "self_attn.q_proj", "which DoRA has"),
        ("llama-qv", "/fine_tune_type", json!("full"), "self_attn.q_proj", "'fine_tune_type' says full"),
        ("llama-4bit-dora", "/fine_tune_type", json!("lora"), ".m'", "is DoRA's"),
        ("llama-full", "/fine_tune_type", json!("lora"), "input_layernorm.weight", "lora_parameters"),
        ("phi3-peft", "/target_modules", json!(["o_proj"]), "down_proj", "'target_modules'"),
        ("phi3-peft", "/layers_to_transform", json!([1, 2]), "model.layers.3", "'layers_to_transform'"),
        ("phi3-peft", "/r", json!(3), "lora_A", "adapter_config.json says 3"),
        ("qwen2-peft-dora", "/modules_to_save", Value::Null, "input_layernorm.weight", "'modules_to_save'"),
        ("qwen2-peft-bias", "/bias", json!("none"), "q_proj.bias", "'bias'"),
        (
            "qwen3_moe-peft-experts",
            "/target_parameters",
            json!(["experts.down_proj"]),
            "mlp.experts.gate_up_proj",
            "'target_parameters'",
        ),
        ("qwen3_moe-peft-experts", "/target_parameters", json!([]), "mlp.experts", "'target_modules'"),
        ("qwen3_moe-peft-experts", "/rank_pattern", json!({}), "mlp.experts", "says 2 each"),
    ];
    for (adapter, pointer, value, name, key) in cases {
        let base = match adapter.split_once('-').unwrap() {
            ("llama", "4bit-dora") => "tiny-llama-4bit".to_owned(),
            (family, _) => format!("tiny-{family}"),
        };
        let copy = Copy::of(adapter);
        copy.set(pointer, value);
        let error = copy.error(&base);
        let says_name = error.contains(name) || key == "lora_parameters";
        assert!(says_name && error.contains(key), "{adapter} {pointer}: {error}");
    }
}

#[test]
fn tensors_that_are_no_update_are_refused_by_name() {
    let path = "model.layers.1.self_attn.q_proj";
    let read = |change: &dyn Fn(&mut Tensors)| {
        let copy = Copy::of("llama-qv");
        copy.change_tensors(MLX_LM.weights_file, |tensors| change(tensors));
        copy.error("tiny-llama")
    };
    let error = read(&|tensors| drop(tensors.remove(&format!("{path}.lora_b"))));
    assert!(error.contains(path) && error.contains("lacks 'lora_b'"), "{error}");
    let error = read(&|tensors| drop(tensors.remove(&format!("{path}.lora_a"))));
    assert!(error.contains(path) && error.contains("lacks 'lora_a'"), "{error}");
    let error = read(&|tensors| tensors.get_mut(&format!("{path}.lora_a")).unwrap().0 = vec![4, 32]);
    assert!(error.contains(path) && error.contains("ranks 32 and 4"), "{error}");
    let error = read(&|tensors| tensors.get_mut(&format!("{path}.lora_a")).unwrap().0 = vec![128]);
    assert!(error.contains(path) && error.contains("no update"), "{error}");
    let error = read(&|tensors| {
        tensors.insert(format!("{path}.lora_c"), (vec![1], vec![0; 4]));
    });
    assert!(error.contains("lora_c") && error.contains(MLX_LM.weights_file), "{error}");
    let error = read(&|tensors| {
        tensors.insert(format!("{path}.lora_a"), (vec![32, 0], Vec::new()));
    });
    assert!(error.contains("is empty"), "{error}");
    let error = read(&|tensors| tensors.clear());
    assert!(error.contains("holds nothing"), "{error}");
}

#[test]
fn files_that_are_missing_or_cut_are_named() {
    let copy = Copy::of("llama-qv");
    let path = |name: &str| copy.0.path().join(name);
    let whole = fs::read(path(MLX_LM.weights_file)).unwrap();
    for length in [0, 7, 8, 100] {
        fs::write(path(MLX_LM.weights_file), &whole[..length]).unwrap();
        let error = copy.error("tiny-llama");
        assert!(error.contains(MLX_LM.weights_file) && error.contains("damaged"), "{length}: {error}");
    }
    fs::write(path(MLX_LM.weights_file), [0xff; 64]).unwrap();
    assert!(copy.error("tiny-llama").contains("damaged"));
    fs::remove_file(path(MLX_LM.weights_file)).unwrap();
    let error = copy.error("tiny-llama");
    assert!(error.contains("adapters.safetensors: is not there"), "{error}");
    fs::remove_file(path(CONFIG_FILE)).unwrap();
    let error = copy.error("tiny-llama");
    assert!(error.contains("adapter_config.json is not there") && error.contains("--adapter"), "{error}");
}

#[test]
fn what_is_not_known_or_not_run_is_warned_of() {
    let copy = Copy::of("llama-qv");
    copy.set("/new_setting", json!(1));
    copy.change_tensors(MLX_LM.weights_file, |tensors| {
        let (down, up) = ((vec![3, 4], vec![0; 48]), (vec![4, 3], vec![0; 48]));
        tensors.insert("vision_tower.blocks.0.qkv.lora_a".to_owned(), down);
        tensors.insert("vision_tower.blocks.0.qkv.lora_b".to_owned(), up);
    });
    let warnings = copy.read("tiny-llama").unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("'new_setting'"), "{warnings:?}");
    assert!(warnings[1].contains("vision_tower.blocks.0.qkv"), "{warnings:?}");
}

#[test]
fn only_tables_that_are_saved_as_modules_untie_them() {
    let saved = |modules: Value, name: &str| {
        let copy = Copy::of("qwen2-peft-bias");
        copy.set("/modules_to_save", modules);
        copy.change_tensors(PEFT.weights_file, |tensors| {
            tensors.insert(format!("base_model.model.{name}"), (vec![1], vec![0; 4]));
        });
        let adapter = copy.read("tiny-qwen2").unwrap();
        adapter.replaced.into_iter().find(|weight| weight.name == name).unwrap().unties
    };
    assert!(saved(json!(["lm_head"]), "lm_head.weight"));
    assert!(saved(json!(["embed_tokens"]), "model.embed_tokens.weight"));
    assert!(!saved(Value::Null, "model.embed_tokens.weight"));
    assert!(!saved(json!(["norm"]), "model.norm.weight"));
}

#[test]
fn modules_are_found_in_their_layers() {
    assert_eq!(in_layer("model.layers.12.mlp.up_proj"), Some((12, "mlp.up_proj")));
    assert_eq!(in_layer("language_model.model.layers.0.a"), Some((0, "a")));
    assert_eq!(in_layer("layers.3.x.layers.4.y"), Some((3, "x.layers.4.y")));
    for none in ["lm_head", "model.layers.x.y", "mylayers.3.x", "model.layers.3"] {
        assert_eq!(in_layer(none), None, "{none}");
    }
}
