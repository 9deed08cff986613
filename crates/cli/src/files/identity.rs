//! Which file a name stands for: two names are one file where the operating system says so, be it
//! through links of either kind or through folders.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file itself, whatever it is called: its device and its number there.
#[cfg(unix)]
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

#[cfg(unix)]
impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

#[cfg(unix)]
impl From<&std::fs::Metadata> for Identity {
    fn from(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A file itself, whatever it is called.
#[cfg(not(unix))]
#[derive(Debug, PartialEq, Eq)]
pub struct Identity(same_file::Handle);

#[cfg(not(unix))]
impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        same_file::Handle::from_path(path).map(Self)
    }
}

/// The files that a command reads, each with its name in messages: no output may replace one.
#[derive(Debug, Default)]
pub struct Inputs(Vec<(&'static str, Identity)>);

impl Inputs {
    /// The files of a checkpoint and its configuration.
    pub fn of_checkpoint(checkpoint: &Path, config: &Path) -> Self {
        let mut inputs = Self::default();
        inputs.add("the configuration", config);
        for file in checkpoint_files(checkpoint) {
            inputs.add("a file of the checkpoint", &file);
        }
        inputs
    }

    /// Adds a file. One that is not there is left out: reading it will say so.
    pub fn add(&mut self, what: &'static str, path: &Path) {
        if let Ok(identity) = Identity::of(path) {
            self.0.push((what, identity));
        }
    }

    /// Adds the file that standard input was redirected from, if it is one.
    pub fn add_stdin(&mut self) {
        #[cfg(unix)]
        if let Ok(metadata) = super::metadata_of(&io::stdin())
            && metadata.is_file()
        {
            let identity = Identity::from(&metadata);
            self.0.push(("the input", identity));
        }
    }

    /// What the file of this name is read as, if it is read.
    pub fn find(&self, path: &Path) -> Option<&'static str> {
        self.find_file(&Identity::of(path).ok()?)
    }

    /// What this file is read as, if it is read.
    pub fn find_file(&self, file: &Identity) -> Option<&'static str> {
        let found = self.0.iter().find(|(_, read)| read == file);
        found.map(|(what, _)| *what)
    }
}

/// The files of a checkpoint: those of its folder, and every shard that its index lists, be it there
/// or not.
fn checkpoint_files(checkpoint: &Path) -> Vec<PathBuf> {
    let mut files = vec![checkpoint.to_owned()];
    if checkpoint.is_dir() {
        let names = ["model.safetensors", "model.safetensors.index.json"];
        files = names.map(|name| checkpoint.join(name)).into();
    }
    let is_index = |file: &&PathBuf| file.extension().is_some_and(|e| e == "json");
    let shards: Vec<_> = files
        .iter()
        .filter(is_index)
        .flat_map(|f| shards(f))
        .collect();
    files.extend(shards);
    files
}

/// The shards that an index lists; none of one that cannot be read, of which the checkpoint's reader
/// says why.
fn shards(index: &Path) -> Vec<PathBuf> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let text = swiglu_mmap::read_text(index).unwrap_or_default();
    let index: Value = serde_json::from_str(&text).unwrap_or_default();
    let listed = index["weight_map"].as_object().into_iter().flatten();
    let mut names: Vec<_> = listed.filter_map(|(_, shard)| shard.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| folder.join(name)).collect()
}
