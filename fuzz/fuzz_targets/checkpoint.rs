//! Any bytes as a safetensors file and as a checkpoint's index: an error or a checkpoint, never a
//! panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swiglu_mlp::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    for name in ["model.safetensors.index.json", "model.safetensors"] {
        let path = folder.path().join(name);
        if std::fs::write(&path, bytes).is_err() {
            return;
        }
        // A folder, which then holds an index, and later the file by itself.
        let target = if name.ends_with("json") {
            folder.path()
        } else {
            &path
        };
        if let Ok(checkpoint) = Checkpoint::open(target) {
            let _ = checkpoint.names().count();
        }
    }
});
