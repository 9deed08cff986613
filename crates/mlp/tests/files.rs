//! Which files are opened and what of them must be whole: those that hold the prefix, no others.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::path::Path;

use swiglu_mlp::synthetic::{SyntheticConfig, write_checkpoint};
use swiglu_mlp::{Checkpoint, MlpConfig, ModelConfig, OpenMode, SharedExpert};

mod common;
use common::{PREFIX, file, put, tiny};

const MODES: [OpenMode; 2] = [OpenMode::Map, OpenMode::Read];
const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5000000000\n";

/// A folder with one layer in `here.safetensors`, and an index that says so of it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_checkpoint(folder.path(), &tiny()).unwrap();
        let from = folder.path().join("model.safetensors");
        std::fs::rename(from, folder.path().join("here.safetensors")).unwrap();
        let all = Self(folder);
        all.index(|_| ());
        all
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn index(&self, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
        let checkpoint = Checkpoint::open(&self.path().join("here.safetensors")).unwrap();
        let names = checkpoint.names();
        let mut map = names
            .map(|n| (n.to_owned(), "here.safetensors".into()))
            .collect();
        change(&mut map);
        let index = serde_json::json!({ "weight_map": map }).to_string();
        put(self.path(), "model.safetensors.index.json", index);
    }

    fn config(&self) -> MlpConfig {
        let model = ModelConfig::from_file(&self.path().join("config.json")).unwrap();
        model.mlp_config(PREFIX).unwrap()
    }

    /// The gate's bytes, in either mode.
    fn load(&self) -> Result<Vec<u8>, String> {
        let [mapped, read] = MODES.map(|mode| {
            let checkpoint = Checkpoint::open_with(self.path(), mode).map_err(|e| e.to_string())?;
            let expert = SharedExpert::load(&checkpoint, &self.config());
            let expert = expert.map_err(|e| e.to_string())?;
            Ok([expert.gate().data(), expert.gate().scales()].concat())
        });
        assert_eq!(mapped, read);
        mapped
    }
}

#[test]
fn shards_that_are_not_there_do_not_stop_a_layer_that_is_whole() {
    let folder = Folder::new();
    let whole = folder.load().unwrap();
    folder.index(|map| {
        map.insert("layers.4.ffn.x".to_owned(), "absent.safetensors".into());
        map.insert("layers.5.ffn.x".to_owned(), "pointer.safetensors".into());
        map.insert("layers.6.ffn.x".to_owned(), "broken.safetensors".into());
        // A tensor of another layer, which the file does not have.
        map.insert("layers.30.x".to_owned(), "here.safetensors".into());
    });
    put(folder.path(), "pointer.safetensors", POINTER);
    put(folder.path(), "broken.safetensors", [0xff; 40]);
    assert_eq!(folder.load().unwrap(), whole);
}

#[test]
fn types_that_are_not_known_matter_when_they_are_asked_for() {
    let header = |name: &str| {
        format!(
            r#"{{"{name}.w1.weight":{{"dtype":"F3_E1M1","shape":[9],"data_offsets":[0,4]}},
            "{name}.w2.weight":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}},
            "{name}.w3.weight":{{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}}}"#
        )
    };
    let folder = Folder::new();
    let one = put(
        folder.path(),
        "a.safetensors",
        file(&header("other"), &[0; 12]),
    );
    for mode in MODES {
        let checkpoint = Checkpoint::open_with(&one, mode).unwrap();
        assert_eq!(checkpoint.names().count(), 3);
        let mut config = folder.config();
        config.prefix = "other".to_owned();
        let error = SharedExpert::load(&checkpoint, &config)
            .unwrap_err()
            .to_string();
        for part in ["other.w1.weight", "a.safetensors", "F3_E1M1"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_pointer_of_git_lfs_is_named() {
    let folder = Folder::new();
    put(folder.path(), "here.safetensors", POINTER);
    let error = folder.load().unwrap_err();
    assert!(
        error.contains("here.safetensors: a Git LFS pointer"),
        "{error}"
    );
    assert!(error.contains("git lfs pull"), "{error}");
    let folder = Folder::new();
    put(folder.path(), "model.safetensors.index.json", POINTER);
    assert!(
        folder
            .load()
            .unwrap_err()
            .contains("index.json: a Git LFS pointer")
    );
    put(folder.path(), "config.json", POINTER);
    let error = ModelConfig::from_file(&folder.path().join("config.json"));
    assert!(error.unwrap_err().to_string().contains("git lfs pull"));
}

#[test]
fn a_file_that_is_short_is_perhaps_no_whole_download() {
    let folder = Folder::new();
    let path = folder.path().join("here.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = folder.load().unwrap_err();
        assert!(error.contains("incomplete download?"), "{error}");
        assert!(error.contains("here.safetensors"), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_an_error_where_it_is_read() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open_with(folder.path(), OpenMode::Read).unwrap();
    let config = folder.config();
    SharedExpert::load(&checkpoint, &config).unwrap();
    let path = folder.path().join("here.safetensors");
    let length = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(length / 2).unwrap();
    let error = SharedExpert::load(&checkpoint, &config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("it was cut since it was opened"), "{error}");
}

#[test]
fn the_files_of_deepseeks_converter_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &tiny()).unwrap();
    let rename = |from: &str, to: &str| {
        std::fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    };
    rename("model.safetensors", "model0-mp8.safetensors");
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    for part in [
        "model0-mp8.safetensors",
        "a tensor-parallel shard of DeepSeek's own converter",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // Of one rank it is the whole.
    rename("model0-mp8.safetensors", "model0-mp1.safetensors");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.path().ends_with("model0-mp1.safetensors"));
    // Shards without their index.
    rename("model0-mp1.safetensors", "model-00001-of-00002.safetensors");
    put(folder.path(), "model-00002-of-00002.safetensors", "");
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("found neither, but 2 files such as"),
        "{error}"
    );
    assert!(error.contains("incomplete download?"), "{error}");
}

#[test]
fn a_wrong_prefix_lists_the_nearest() {
    let folder = Folder::new();
    folder.index(|map| {
        for layer in 0..9 {
            for expert in 0..9 {
                let name = format!("layers.{layer}.ffn.experts.{expert}.w1.weight");
                map.insert(name, "absent.safetensors".into());
            }
        }
        map.insert(
            "layers.3.attn.wq.weight".to_owned(),
            "absent.safetensors".into(),
        );
    });
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for wrong in [
        "model.layers.3.mlp.shared_experts",
        "layers.3.ffn.shared_expert",
        "layers.30.ffn.shared_experts",
        "layers.3.ffn.shared_experts.",
    ] {
        let mut config = folder.config();
        config.prefix = wrong.to_owned();
        let error = SharedExpert::load(&checkpoint, &config)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("nearest are under {PREFIX}")),
            "{error}"
        );
        assert!(error.contains("of 82 prefixes"), "{error}");
    }
    assert_eq!(checkpoint.mlp_prefixes().len(), 82);
    let other = put(folder.path(), "a.safetensors", file("{}", &[]));
    let nothing = Checkpoint::open(&other).unwrap();
    let error = SharedExpert::load(&nothing, &folder.config()).unwrap_err();
    assert!(
        error.to_string().contains("nor elsewhere among 0 tensors"),
        "{error}"
    );
}

#[test]
fn names_and_shapes_in_errors_are_escaped_and_cut() {
    let folder = Folder::new();
    let long = "y".repeat(1 << 20);
    let sides = vec!["1"; 5000].join(",");
    let header = |name: &str, shape: &str| {
        format!(r#"{{"{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,8]}}}}"#)
    };
    let error = |header: String| {
        let path = put(folder.path(), "a.safetensors", file(&header, &[0; 8]));
        let checkpoint = match Checkpoint::open(&path) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return error.to_string(),
        };
        let mut config = folder.config();
        config.prefix = "x".to_owned();
        SharedExpert::load(&checkpoint, &config)
            .unwrap_err()
            .to_string()
    };
    let escape = r"x.\n\u001b[31mw1\u202e.weight";
    for (header, contains) in [
        (header(escape, "1"), r"x.\n\u{1b}[31mw1\u{202e}.weight"),
        (header(&long, "1"), "…"),
        (header("x.w1.weight", &sides), "5000 in all]"),
        (format!(r#"{{"a":{{"dtype":"{long}"}}}}"#), "header: a: "),
        (format!(r#"{{"{long}":7}}"#), "header: yyy"),
        (
            header(&format!("x.{long}.w1.weight"), "2"),
            "nearest are under x.yyy",
        ),
        (header("x.w1.weight", "2").replace("F32", &long), "yyy"),
    ] {
        let error = error(header);
        assert!(error.contains(contains), "{error}");
        assert!(error.len() < 3000, "{} characters", error.len());
        assert!(!error.contains(['\n', '\u{1b}', '\u{202e}']), "{error}");
    }
    folder.index(|map| {
        map.insert(format!("{PREFIX}.x"), format!("\u{1b}{long}").into());
    });
    let error = folder.load().unwrap_err();
    assert!(
        error.len() < 3000 && error.contains("\\u{1b}yyy"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_in_place_of_files_are_refused_at_once() {
    let folder = Folder::new();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for name in [
        "here.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ] {
        for target in [&pipe, Path::new("/dev/zero")] {
            let path = folder.path().join(name);
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(target, &path).unwrap();
            let error = match name {
                "config.json" => ModelConfig::from_file(&path).unwrap_err().to_string(),
                "here.safetensors" => Checkpoint::open(&path).unwrap_err().to_string(),
                _ => Checkpoint::open(folder.path()).unwrap_err().to_string(),
            };
            assert!(error.contains("expected a regular file"), "{error}");
        }
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let folder = Folder::new();
    let whole = folder.load().unwrap();
    for name in ["config.json", "model.safetensors.index.json"] {
        let text = std::fs::read(folder.path().join(name)).unwrap();
        put(
            folder.path(),
            name,
            [b"\xef\xbb\xbf".as_slice(), &text].concat(),
        );
    }
    assert_eq!(folder.load().unwrap(), whole);
    let text = format!("\u{feff}{}", SyntheticConfig::flash(1).config_json());
    assert_eq!(ModelConfig::from_json(&text).unwrap().hidden_size, 4096);
}
