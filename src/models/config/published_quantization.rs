//! Publishers' own forms of quantised weights in a configuration.
//!
//! Owns which are served and what of their settings counts. The arrays show most; the tables of `known` say of each
//! setting that is not read here why.

use serde_json::Value;

use super::{
    fields::Fields,
    known::{COMPRESSED_GROUP, COMPRESSED_TENSORS, COMPRESSED_WEIGHTS, GPTQ, PUBLISHED_QUANTIZATION},
};
use crate::models::{
    known_keys::KeyRule,
    spec::{GptqFormat, PublisherFormat},
};

/// A publisher's own form, by its `quant_method`; accounts for all settings.
pub(super) fn publisher_format(method: &Value, settings: &Fields) -> Result<PublisherFormat, String> {
    let (format, known): (_, &[KeyRule]) = match method.as_str() {
        Some("mxfp4") => (PublisherFormat::Mxfp4Blocks, &[]),
        Some("fp8") => (PublisherFormat::Fp8 { block: block(settings, "weight_block_size")? }, &[]),
        Some("awq") => (awq(settings)?, &[]),
        Some("gptq") => (PublisherFormat::Gptq(gptq(settings)?), GPTQ),
        Some("compressed-tensors") => (compressed_tensors(settings)?, COMPRESSED_TENSORS),
        Some("modelopt") if settings.get("quant_algo").is_some_and(|algorithm| algorithm == "NVFP4") => {
            (PublisherFormat::ModelOptNvfp4, &[])
        }
        _ => {
            return Err(format!(
                "weights quantised by {method} are not supported (awq, gptq, compressed-tensors, fp8, mxfp4 and \
                 modelopt's NVFP4 are); use an MLX conversion of this model"
            ));
        }
    };
    settings.account(&[known, PUBLISHED_QUANTIZATION])?;
    Ok(format)
}

/// Rows and columns that have a factor together.
fn block(settings: &Fields, name: &str) -> Result<Option<(usize, usize)>, String> {
    let Some(size) = settings.get(name) else { return Ok(None) };
    let wrong = || format!("'{name}' must be two positive numbers, got {size}");
    let sizes = size.as_array().ok_or_else(wrong)?.iter();
    let sizes = sizes.map(|size| size.as_u64().filter(|&size| size > 0 && size <= 1 << 20));
    match sizes.collect::<Option<Vec<_>>>().ok_or_else(wrong)?[..] {
        [rows, columns] => Ok(Some((rows as usize, columns as usize))),
        _ => Err(wrong()),
    }
}

fn awq(settings: &Fields) -> Result<PublisherFormat, String> {
    let bits = settings.integer("bits", Some(4), 1, 64)?;
    let group_size = settings.integer("group_size", Some(128), 1, 1 << 16)?;
    let version = settings.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if bits != 4 || !version.eq_ignore_ascii_case("gemm") {
        return Err(format!(
            "awq with {bits} bits in the form '{version}' is not supported (4 in 'gemm' are)"
        ));
    }
    Ok(PublisherFormat::Awq { group_size })
}

fn gptq(settings: &Fields) -> Result<GptqFormat, String> {
    let bits = settings.integer("bits", None, 1, 64)?;
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(format!("gptq with {bits} bits is not supported (2, 3, 4 and 8 are)"));
    }
    let group_size = settings.get("group_size").filter(|size| size.as_i64() != Some(-1));
    let group_size = match group_size {
        None => None,
        Some(_) => Some(settings.integer("group_size", None, 1, 1 << 16)?),
    };
    let [stated, older] = ["checkpoint_format", "format"].map(|name| settings.get(name));
    if let (Some(stated), Some(older)) = (stated, older)
        && stated != older
    {
        return Err(format!("'checkpoint_format' is {stated} and 'format' is {older}: only one can be"));
    }
    let format = stated.or(older);
    let stores_zeros_less_one = match format.map(Value::as_str) {
        None | Some(Some("gptq")) => true,
        Some(Some("gptq_v2")) => false,
        // The same but for codes that lie across words.
        Some(Some("gptq_p")) if bits != 3 => false,
        _ => {
            return Err(format!(
                "gptq in the form {} is not supported (gptq and gptq_v2 are)",
                format.unwrap_or(&Value::Null)
            ));
        }
    };
    let is_planar = format.is_some_and(|format| format == "gptq_p");
    Ok(GptqFormat { bits, group_size, is_planar, stores_zeros_less_one })
}

fn compressed_tensors(settings: &Fields) -> Result<PublisherFormat, String> {
    let known = |format: Option<&Value>| match format.map(Value::as_str) {
        None => Ok(()),
        Some(Some(
            "pack-quantized"
            | "int-quantized"
            | "float-quantized"
            | "naive-quantized"
            | "nvfp4-pack-quantized"
            | "mxfp4-pack-quantized"
            | "mxfp8-quantized"
            | "mixed-precision"
            | "dense",
        )) => Ok(()),
        _ => Err(format!(
            "compressed-tensors in the form {} is not supported (pack-quantized, int-quantized, float-quantized, \
             nvfp4-pack-quantized, mxfp4-pack-quantized and mxfp8-quantized are)",
            format.unwrap_or(&Value::Null)
        )),
    };
    known(settings.get("format"))?;
    if let Some(sparsity) = settings.nested("sparsity_config")?
        && let Some(format) = sparsity.get("format").filter(|format| *format != "dense")
    {
        return Err(format!("'sparsity_config': weights without their zeros ({format}) are not supported"));
    }
    let (mut found, mut stated_bits) = (None, 0);
    if let Some(groups) = settings.nested("config_groups")? {
        for name in groups.map().keys() {
            let Some(group) = groups.nested(name)? else { continue };
            known(group.get("format"))?;
            if let Some(weights) = group.nested("weights")? {
                let of_group = block(&weights, "block_structure")?;
                if found.is_some() && of_group.is_some() && found != of_group {
                    return Err("'block_structure' must be the same in all of 'config_groups'".to_owned());
                }
                found = found.or(of_group);
                if weights.get("num_bits").is_some_and(|bits| !bits.is_null()) {
                    stated_bits |= 1 << weights.integer("num_bits", None, 1, 63)?;
                }
                weights.account(&[COMPRESSED_WEIGHTS])?;
            }
            group.account(&[COMPRESSED_GROUP])?;
        }
    }
    Ok(PublisherFormat::CompressedTensors { block: found, stated_bits })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{parse_model_config, published::llama};
    use crate::models::spec::{GptqFormat, PublisherFormat};

    fn read(settings: Value) -> Result<(PublisherFormat, Vec<String>), String> {
        let mut config = llama();
        config["quantization_config"] = settings;
        let found = parse_model_config(&config, "config.json").map_err(|error| error.to_string())?;
        let format = found.spec.quantization.and_then(|settings| settings.publisher);
        Ok((format.expect("it is a publisher's"), found.warnings))
    }

    #[test]
    fn gptqs_zeros_are_less_one_in_its_first_form() {
        // As AutoGPTQ, optimum and GPTQModel write it.
        let first = json!({
            "batch_size": 1, "bits": 4, "block_name_to_quantize": null, "cache_block_outputs": true,
            "damp_percent": 0.1, "dataset": null, "desc_act": true, "exllama_config": {"version": 1},
            "group_size": 128, "max_input_length": null, "model_seqlen": null,
            "module_name_preceding_first_block": null, "modules_in_block_to_quantize": null, "pad_token_id": null,
            "quant_method": "gptq", "sym": true, "tokenizer": null, "true_sequential": true, "use_cuda_fp16": false,
            "use_exllama": true, "static_groups": false, "model_name_or_path": null, "model_file_base_name": "model"
        });
        let meant = |stores_zeros_less_one| GptqFormat {
            bits: 4,
            group_size: None,
            is_planar: false,
            stores_zeros_less_one,
        };
        let of_first = GptqFormat { group_size: Some(128), ..meant(true) };
        assert_eq!(read(first), Ok((PublisherFormat::Gptq(of_first), vec![])));
        for (format, less_one) in [("gptq", true), ("gptq_v2", false), ("gptq_p", false)] {
            let newer = json!({
                "bits": 4, "checkpoint_format": format, "desc_act": false, "group_size": -1, "lm_head": false,
                "meta": {"quantizer": ["gptqmodel:1.4.5"]}, "pack_dtype": "int32", "quant_method": "gptq",
                "sym": false, "dynamic": {"-:.*down.*": {}}
            });
            let meant = GptqFormat { is_planar: format == "gptq_p", ..meant(less_one) };
            assert_eq!(read(newer), Ok((PublisherFormat::Gptq(meant), vec![])), "{format}");
        }
    }

    #[test]
    fn compressed_tensors_groups_may_differ_but_in_blocks() {
        let of = |weights: Value, inputs: Value| {
            json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized", "global_compression_ratio": 1.5,
                "ignore": ["lm_head"], "kv_cache_scheme": null, "quantization_status": "compressed",
                "sparsity_config": {}, "transform_config": {}, "version": "0.12.2",
                "config_groups": {"group_0": {
                    "format": null, "input_activations": inputs, "output_activations": null, "targets": ["Linear"],
                    "weights": weights
                }}
            })
        };
        let whole = json!({
            "actorder": "weight", "block_structure": null, "dynamic": false, "group_size": 128, "num_bits": 4,
            "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": true, "type": "int"
        });
        let plain = PublisherFormat::CompressedTensors { block: None, stated_bits: 1 << 4 };
        assert_eq!(read(of(whole.clone(), json!(null))), Ok((plain, vec![])));
        let (_, warnings) = read(of(whole, json!({"dynamic": true, "num_bits": 8, "type": "int"}))).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("input_activations"), "{warnings:?}");
        let blocks =
            json!({"block_structure": [128, 128], "num_bits": 8, "strategy": "block", "type": "float"});
        let (format, _) = read(of(blocks, json!(null))).unwrap();
        assert_eq!(
            format,
            PublisherFormat::CompressedTensors { block: Some((128, 128)), stated_bits: 1 << 8 }
        );
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (settings, named) in [
            (json!({"quant_method": "gptq", "bits": 5}), "5 bits"),
            (json!({"quant_method": "gptq"}), "bits"),
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
            (json!({"quant_method": "gptq", "bits": 3, "checkpoint_format": "gptq_p"}), "gptq_p"),
            (json!({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}), "rotation"),
            (
                json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq", "format": "gptq_v2"}),
                "only one can be",
            ),
            (json!({"quant_method": "gptq", "bits": 4, "is_marlin_format": true}), "is_marlin_format"),
            (json!({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}), "pack_dtype"),
            (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "marlin-24"),
            (json!({"quant_method": "compressed-tensors", "format": 4}), "4"),
            (json!({"quant_method": "compressed-tensors", "config_groups": [1]}), "config_groups"),
            (
                json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}),
                "sparse-24-bitmask",
            ),
            (
                json!({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}),
                "transform_config",
            ),
            (json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"format": "new"}}}), "new"),
            (
                json!({"quant_method": "compressed-tensors",
                       "config_groups": {"a": {"weights": {"block_structure": [0, 1]}}}}),
                "block_structure",
            ),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": {
                    "a": {"weights": {"block_structure": [8, 8]}}, "b": {"weights": {"block_structure": [8, 4]}}}}),
                "block_structure",
            ),
            (json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
        ] {
            let message = read(settings.clone()).expect_err(&settings.to_string());
            assert!(message.contains(named), "{settings}: {message}");
        }
    }
}
