//! What a file or a folder is that is no whole checkpoint.

use std::io::Read;
use std::path::Path;

use swiglu_mmap::open_regular;

use crate::{Error, Result, text};

/// The most bytes of a file of JSON: the largest index in use has 20 MB.
const MAX_TEXT: u64 = 1 << 28;

/// The text of a file of JSON, without a byte order mark.
pub fn read_text(path: &Path) -> Result<String> {
    let file = open_regular(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_TEXT {
        let problem = format!("longer than {MAX_TEXT} bytes");
        return Err(Error::file(path, problem));
    }
    if let Some(other) = not_the_file(&bytes) {
        return Err(Error::file(path, other));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::file(path, format!("expected text in UTF-8: {e}")))?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

/// What a file is that begins so, where it is known to be something else than was sought.
pub fn not_the_file(start: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 5] = [
        (
            b"version https://git-lfs",
            "a Git LFS pointer and not the file itself, which `git lfs pull` brings",
        ),
        (b"GGUF", "a GGUF file; expected safetensors"),
        (b"PK\x03\x04", "a PyTorch or zip file; expected safetensors"),
        (b"<!DOCTYPE", "a web page and not the file itself"),
        (b"<html", "a web page and not the file itself"),
    ];
    let known = KNOWN.iter().find(|(magic, _)| start.starts_with(magic));
    known.map(|(_, what)| *what)
}

/// The safetensors files of a folder without an index.
pub struct Shards {
    /// `model0-mp8.safetensors`: those that DeepSeek's `convert.py` writes.
    pub converted: Vec<Converted>,
    others: Vec<String>,
}

/// One rank's file of DeepSeek's `convert.py`.
pub struct Converted {
    pub name: String,
    pub ranks: usize,
}

impl Converted {
    /// What the name of a file says.
    pub fn of(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("model")?;
        let (rank, ranks) = rest.strip_suffix(".safetensors")?.split_once("-mp")?;
        let _: usize = rank.parse().ok()?;
        let (name, ranks) = (name.to_owned(), ranks.parse().ok()?);
        Some(Self { name, ranks })
    }
}

impl Shards {
    pub fn of(folder: &Path) -> Result<Self> {
        let mut shards = Self {
            converted: Vec::new(),
            others: Vec::new(),
        };
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match Converted::of(&name) {
                Some(converted) => shards.converted.push(converted),
                None if name.ends_with(".safetensors") => shards.others.push(name),
                None => {}
            }
        }
        shards.converted.sort_by(|a, b| a.name.cmp(&b.name));
        shards.others.sort();
        Ok(shards)
    }

    /// What there is, in words.
    pub fn describe(&self) -> Option<String> {
        if let Some(first) = self.converted.first() {
            let what = tensor_parallel(&first.name)?;
            return Some(format!("{}, {what}", text::name(&first.name)));
        }
        let first = text::name(self.others.first()?);
        Some(match self.others.len() {
            1 => format!("{first}, which can be named as the checkpoint"),
            n => format!(
                "{n} files such as {first}: is {} missing (incomplete download?)",
                super::INDEX
            ),
        })
    }
}

/// What a file of this name is, where it is one of several ranks.
pub fn tensor_parallel(name: &str) -> Option<String> {
    let ranks = Converted::of(name)?.ranks;
    (ranks > 1).then(|| {
        format!(
            "a tensor-parallel shard of DeepSeek's own converter, one of {ranks} parts of each \
             tensor: expected the checkpoint as it was released"
        )
    })
}
