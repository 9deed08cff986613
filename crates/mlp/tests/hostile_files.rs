//! Files that lie: each is an error that says what and where, none panics.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use proptest::prelude::*;
use swiglu_mlp::synthetic::write_checkpoint;
use swiglu_mlp::{Checkpoint, MlpConfig, ModelConfig, OpenMode, SharedExpert};

mod common;
use common::{PREFIX, file, put, tiny};

const MODES: [OpenMode; 2] = [OpenMode::Map, OpenMode::Read];

/// The error of opening a file with these bytes.
fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = put(folder.path(), "a.safetensors", bytes);
    let mapped = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(mapped.contains("a.safetensors"), "{mapped}");
    let read = Checkpoint::open_with(&path, OpenMode::Read).unwrap_err();
    assert_eq!(read.to_string(), mapped);
    mapped
}

fn refused_with(bytes: &[u8], reason: &str) {
    let error = refused(bytes);
    assert!(error.contains(reason), "{error}");
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;

#[test]
fn an_honest_file_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = put(folder.path(), "a.safetensors", file(TWO, &[0; 8]));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn an_empty_file() {
    refused_with(&[], "0 bytes are too few");
}

#[test]
fn a_header_length_of_all_ones() {
    refused_with(&[0xff; 16], "a header of 18446744073709551615 bytes");
}

#[test]
fn a_header_length_beyond_the_file() {
    let mut bytes = file(TWO, &[0; 8]);
    bytes[..8].copy_from_slice(&(1_u64 << 20).to_le_bytes());
    refused_with(&bytes, "a header of 1048576 bytes");
}

/// The format's own bound, in files with a hole for a header: one byte more is refused before it is
/// read as JSON.
#[test]
fn a_header_beyond_the_formats_bound() {
    const MOST: u64 = 100_000_000;
    let folder = tempfile::tempdir().unwrap();
    let error = |length: u64| {
        let path = put(folder.path(), "a.safetensors", length.to_le_bytes());
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length + 1000).unwrap();
        drop(file);
        Checkpoint::open(&path).unwrap_err().to_string()
    };
    let beyond = error(MOST + 1);
    let expected = "a header of 100000001 bytes, where at most 100000000 are possible";
    assert!(beyond.contains(expected), "{beyond}");
    let at = error(MOST);
    assert!(at.contains("header: ") && !at.contains("possible"), "{at}");
}

#[test]
fn overlapping_offsets() {
    let header = TWO.replace("[4,8]", "[2,6]");
    refused_with(&file(&header, &[0; 6]), "tensor b in");
}

#[test]
fn a_gap_between_tensors() {
    let header = TWO.replace("[4,8]", "[8,12]");
    refused_with(&file(&header, &[0; 12]), "begins at 8 where");
}

#[test]
fn offsets_past_the_end() {
    let header = TWO.replace("[4,8]", "[4,4000000000000]");
    refused_with(&file(&header, &[0; 8]), "tensor b in");
}

#[test]
fn offsets_backwards() {
    let header = TWO.replace("[4,8]", "[8,4]");
    refused_with(&file(&header, &[0; 8]), "tensor b in");
}

#[test]
fn a_shape_that_overflows() {
    let header = TWO.replacen("[1]", "[4294967296,4294967296,4]", 1);
    refused_with(&file(&header, &[0; 8]), "tensor a in");
    // 2^62 elements of four bytes are 0 modulo 2^64.
    let header = r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#;
    refused_with(&file(header, &[]), "tensor a in");
}

#[test]
fn terabytes_that_sum_to_a_small_number() {
    // Eight tensors of 2^61 bytes: their ends wrap around to the file's length.
    let entry = |n: u64| {
        let size = 1_u64 << 61;
        let (from, to) = (n * size, (n + 1).wrapping_mul(size));
        format!(r#""t{n}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
    };
    let header = format!("{{{}}}", (0..8).map(entry).collect::<Vec<_>>().join(","));
    refused_with(&file(&header, &[]), "tensor t");
}

#[test]
fn a_shape_that_does_not_fit_its_bytes() {
    let header = TWO.replacen("[1]", "[2]", 1);
    refused_with(&file(&header, &[0; 8]), "tensor a in");
}

#[test]
fn truncated_data() {
    refused_with(&file(TWO, &[0; 7]), "tensor b in");
}

#[test]
fn data_that_no_tensor_claims() {
    refused_with(&file(TWO, &[0; 9]), "9 bytes of data");
}

#[test]
fn a_name_that_stands_twice() {
    let header = TWO.replace("\"b\"", "\"a\"");
    refused_with(&file(&header, &[0; 8]), "a stands twice");
}

#[test]
fn no_json() {
    refused_with(&file("garbage", &[]), "header:");
    refused_with(&file("[1]", &[]), "header:");
    refused_with(&file(&"[".repeat(100_000), &[]), "header:");
    let mut invalid = file("{\"a\"}", &[]);
    invalid[10] = 0xff;
    refused_with(&invalid, "header:");
}

#[test]
fn a_type_that_is_no_name_or_a_negative_size() {
    refused_with(&file(&TWO.replace("\"F32\"", "32"), &[0; 8]), "a: ");
    refused_with(&file(&TWO.replacen("[1]", "[-1]", 1), &[0; 8]), "a: ");
}

/// The error of opening a folder with this index, beside a good `a.safetensors`, and loading `e`.
fn index_refused(map: &str, reason: &str) {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let two = TWO.replace("\"a\"", "\"e.w1.weight\"");
    let two = two.replace("\"b\"", "\"e.w2.weight\"");
    put(folder.path(), "x.safetensors", file(&two, &[0; 8]));
    put(&inner, "a.safetensors", file(&two, &[0; 8]));
    put(&inner, "copy.safetensors", file(&two, &[0; 8]));
    let index = format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
    put(&inner, "model.safetensors.index.json", index);
    for mode in MODES {
        let config = tiny_config("e");
        let error = match Checkpoint::open_with(&inner, mode) {
            Ok(checkpoint) => SharedExpert::load(&checkpoint, &config).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(reason), "{error}");
    }
}

fn tiny_config(prefix: &str) -> MlpConfig {
    let model = ModelConfig::from_json(&tiny().config_json()).unwrap();
    model.mlp_config(prefix).unwrap()
}

#[test]
fn an_index_that_points_out_of_its_folder() {
    let reason = "is no file's name in the index's folder";
    for path in [
        "../x.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "b/../a",
        "a/",
    ] {
        index_refused(&format!(r#"{{"e.w1.weight":"{path}"}}"#), reason);
    }
}

#[test]
fn an_index_that_points_to_nothing() {
    let map = r#"{"e.w1.weight":"absent.safetensors"}"#;
    index_refused(map, "e.w1.weight in ");
    index_refused(map, "absent.safetensors: the index names this file");
    index_refused(map, "incomplete download?");
}

#[test]
fn an_index_whose_shard_lacks_the_tensor() {
    let map = r#"{"e.w1.weight":"a.safetensors","e.w2.weight":"a.safetensors","e.w3.weight":"a.safetensors"}"#;
    index_refused(map, "tensor e.w3.weight in");
}

#[test]
fn an_index_that_leaves_a_tensor_of_the_prefix_out() {
    index_refused(
        r#"{"e.w1.weight":"a.safetensors"}"#,
        "tensor e.w2.weight in",
    );
}

#[test]
fn a_tensor_in_two_shards() {
    let map = r#"{"e.w1.weight":"a.safetensors","e.w2.weight":"copy.safetensors"}"#;
    index_refused(map, "also in");
}

#[test]
fn an_index_that_is_none() {
    index_refused("7", "index.json");
    index_refused(
        r#"{"a":"a.safetensors","a":"a.safetensors"}"#,
        "stands twice",
    );
}

#[test]
fn a_folder_with_nothing_or_too_much() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(open().contains("found neither"));
    put(folder.path(), "model.safetensors", file(TWO, &[0; 8]));
    put(folder.path(), "model.safetensors.index.json", "{}");
    assert!(open().contains("found both"));
}

/// The bytes of a small good checkpoint.
fn good() -> (ModelConfig, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &tiny()).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    (model, bytes)
}

proptest! {
    #[test]
    fn mutations_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        header_only in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (model, mut bytes) = good();
        let within = if header_only { 1000.min(bytes.len()) } else { bytes.len() };
        for (at, value) in changes {
            bytes[at.index(within)] = value;
        }
        if let Some(at) = cut {
            bytes.truncate(at.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = put(folder.path(), "a.safetensors", &bytes);
        let config = model.mlp_config(PREFIX).unwrap();
        let loads = MODES.map(|mode| {
            let checkpoint = Checkpoint::open_with(&path, mode).ok()?;
            let expert = SharedExpert::load(&checkpoint, &config).ok()?;
            Some(expert.down().data().to_vec())
        });
        prop_assert_eq!(&loads[0], &loads[1]);
    }

    #[test]
    fn text_never_makes_the_configuration_panic(text in ".{0,200}") {
        let _ = ModelConfig::from_json(&text);
    }
}
