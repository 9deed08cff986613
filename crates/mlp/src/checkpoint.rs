//! Tensors in safetensors files: one file, or several with an index.
//!
//! ## Method
//! 1. Opening reads names: the header of the one file, or the index of several.
//! 2. Tensors are asked for by what their names begin with. Only the shards that the index names
//!    for those are opened then, each once, and only what was asked for must be whole: a shard that
//!    is missing, an index that is wrong about another layer and types that are not known do not
//!    matter before.
//! 3. A tensor's bytes are those of the mapped file, or are read when they are asked for. Those of an
//!    MLP in mapped files are read before they are packed, those of the next two too where
//!    layers are loaded in order, and are no longer this process's memory once its
//!    [`crate::SharedExpert`] is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{Error, Result, text};

mod ahead;
mod contents;
mod file;
mod header;
mod index;
mod nearest;

pub(crate) use ahead::ReadAhead;
pub(crate) use contents::{read_text, tensor_parallel};
pub(crate) use file::{Pages, StoredTensor};
pub(crate) use header::StoredType;

use contents::Shards;
use file::ShardFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How a checkpoint's bytes come into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// Files are mapped, so that a page is read when it is touched. A file that is cut short
    /// meanwhile kills the process: see [`swiglu_mmap::MappedFile`].
    #[default]
    Map,
    /// What is asked for is read into memory. A file that is cut short is an error.
    Read,
}

/// The tensors of a model, found by name in its files. Nothing is read before it is used.
///
/// A file's header is checked when the file is opened: what a tensor claims lies inside the file
/// and overlaps no other. Files that are mapped must not change while they are open: see
/// [`OpenMode`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    mode: OpenMode,
    shards: Vec<Shard>,
    /// The shard of each tensor, where there is an index; else all are in the first.
    index: Option<BTreeMap<String, usize>>,
    /// What is asked for next where layers are loaded one after another.
    next: Mutex<Option<String>>,
    ahead: ReadAhead,
}

/// A file that is opened when a tensor in it is asked for.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: OnceLock<ShardFile>,
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, one such index
    /// (a `.json` file), or one file of tensors (any other). The files are mapped.
    ///
    /// # Errors
    /// A folder with neither or both, a file that cannot be read, a header or an index that lies.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenMode::Map)
    }

    /// As [`Self::open`], with the files mapped or read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, mode: OpenMode) -> Result<Self> {
        let path = if path.is_dir() {
            in_folder(path)?
        } else {
            path.to_owned()
        };
        let index = match path.extension() {
            Some(extension) if extension == "json" => Some(index::read(&path)?),
            _ => None,
        };
        let Some(listed) = index else {
            let shard = Shard::new(path.clone());
            shard.open(mode)?;
            return Ok(Self {
                path,
                mode,
                shards: vec![shard],
                index: None,
                next: Mutex::default(),
                ahead: ReadAhead::default(),
            });
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let names: BTreeSet<&String> = listed.values().collect();
        let shards = names.iter().map(|name| Shard::new(folder.join(name)));
        let numbers: BTreeMap<_, _> = names.iter().zip(0..).collect();
        let number = |name: &String| numbers.get(&name).copied().unwrap_or_default();
        Ok(Self {
            shards: shards.collect(),
            index: Some(listed.iter().map(|(t, s)| (t.clone(), number(s))).collect()),
            path,
            mode,
            next: Mutex::default(),
            ahead: ReadAhead::default(),
        })
    }

    /// Takes note that the tensors under a prefix are loaded, and says under which the next two will
    /// be, if these were those of the layer after the last.
    pub(crate) fn loads(&self, prefix: &str) -> Vec<String> {
        let following_one = following(prefix);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *next, following_one.clone());
        let first = following_one.filter(|_| before.is_some_and(|expected| expected == prefix));
        std::iter::successors(first, |prefix| following(prefix))
            .take(2)
            .collect()
    }

    /// What reads its tensors ahead.
    pub(crate) const fn ahead(&self) -> &ReadAhead {
        &self.ahead
    }

    /// The file that was opened: that of the tensors, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in order: those of the one file, or those that the index lists.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let listed = self.index.iter().flat_map(BTreeMap::keys);
        let alone = self.shards.iter().filter(|_| self.index.is_none());
        let stored = alone.filter_map(|shard| shard.file.get());
        let stored = stored.flat_map(|file| file.tensors.keys());
        listed.chain(stored).map(String::as_str)
    }

    /// The tensors whose names begin with `prefix` and a dot, in order; with an empty prefix, all.
    ///
    /// # Errors
    /// A shard that cannot be opened, and an index that is wrong about one of these tensors.
    pub(crate) fn under(&self, prefix: &str) -> Result<Vec<StoredTensor<'_>>> {
        let prefix = match prefix {
            "" => String::new(),
            prefix => format!("{prefix}."),
        };
        let Some(index) = &self.index else {
            return Ok(match self.shards.first() {
                Some(shard) => shard.open(self.mode)?.under(&prefix).collect(),
                None => Vec::new(),
            });
        };
        let mut found = Vec::new();
        let mut shards = BTreeSet::new();
        for (name, &number) in under(index, &prefix) {
            let shard = &self.shards[number];
            let file = shard.open(self.mode).map_err(|e| absent(name, shard, e))?;
            let tensor = file.get(name).ok_or_else(|| {
                let problem = format!("not there, though {} says so", text::path(&self.path));
                Error::tensor(name, &shard.path, problem)
            })?;
            found.push(tensor);
            shards.insert(number);
        }
        for number in shards {
            for tensor in self.shards[number].open(self.mode)?.under(&prefix) {
                let problem = match index.get(tensor.name) {
                    Some(&listed) if listed == number => continue,
                    Some(&other) => format!("also in {}", text::path(&self.shards[other].path)),
                    None => format!("not listed in {}", text::path(&self.path)),
                };
                return Err(Error::tensor(tensor.name, tensor.path, problem));
            }
        }
        Ok(found)
    }

    /// What the names of MLPs begin with: all of what has a gate, an up or a down weight, by any
    /// naming that is known. Only names are looked at.
    pub fn mlp_prefixes(&self) -> BTreeSet<&str> {
        nearest::mlp_prefixes(self.names())
    }

    /// The error of a prefix under which there is no MLP.
    pub(crate) fn no_mlp(&self, prefix: &str) -> Error {
        let names: Vec<_> = self.names().collect();
        let problem = nearest::problem(prefix, &names);
        Error::tensor(&format!("{prefix}.*"), &self.path, problem)
    }
}

/// The same prefix with its last number, that of the layer, greater by one.
fn following(prefix: &str) -> Option<String> {
    let mut parts: Vec<_> = prefix.split('.').map(str::to_owned).collect();
    let last = parts.iter_mut().rev().find_map(|part| {
        let number: u32 = part.parse().ok()?;
        Some((part, number))
    });
    let (part, number) = last?;
    *part = number.checked_add(1)?.to_string();
    Some(parts.join("."))
}

impl Shard {
    const fn new(path: PathBuf) -> Self {
        let file = OnceLock::new();
        Self { path, file }
    }

    fn open(&self, mode: OpenMode) -> Result<&ShardFile> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = ShardFile::open(&self.path, mode)?;
        Ok(self.file.get_or_init(|| file))
    }
}

/// Those of a map whose names begin so.
fn under<'a, V>(
    map: &'a BTreeMap<String, V>,
    prefix: &str,
) -> impl Iterator<Item = (&'a String, &'a V)> {
    map.range(prefix.to_owned()..)
        .take_while(move |(name, _)| name.starts_with(prefix))
}

/// The error of a shard that could not be opened, which names the tensor that is sought in it.
fn absent(name: &str, shard: &Shard, error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let problem = "the index names this file and it is not there (incomplete download?)";
            Error::tensor(name, &shard.path, problem)
        }
        other => other,
    }
}

/// The file to open in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    match (single.exists(), index.exists()) {
        (true, false) => return Ok(single),
        (false, true) => return Ok(index),
        (true, true) => {
            let problem = format!("expected {SINGLE} or {INDEX}, found both: name one of them");
            return Err(Error::file(folder, problem));
        }
        (false, false) => {}
    }
    let shards = Shards::of(folder)?;
    if let [converted] = &shards.converted[..]
        && converted.ranks == 1
    {
        return Ok(folder.join(&converted.name));
    }
    let problem = format!("expected {SINGLE} or {INDEX}, found neither");
    let others = shards
        .describe()
        .map(|others| format!("{problem}, but {others}"));
    Err(Error::file(folder, others.unwrap_or(problem)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{SyntheticConfig, write_checkpoint};
    use crate::{ModelConfig, SharedExpert};

    #[test]
    fn the_layers_after_two_in_a_row_are_foreseen() {
        let folder = tempfile::tempdir().unwrap();
        let form = SyntheticConfig {
            hidden: 64,
            intermediate: 64,
            block: 64,
            ..SyntheticConfig::flash(1)
        };
        write_checkpoint(folder.path(), &form).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let loads = |layer: u32| checkpoint.loads(&format!("layers.{layer}.ffn.shared_experts"));
        let after = |layer: u32| {
            [layer, layer + 1].map(|layer| format!("layers.{layer}.ffn.shared_experts"))
        };
        let none: [String; 0] = [];
        assert!(loads(3) == none && loads(7) == none);
        assert!(loads(8) == after(9) && loads(9) == after(10));
        assert!(loads(9) == none && loads(9) == none && loads(10) == after(11));
        assert!(checkpoint.loads("") == none && checkpoint.loads("mtp.x") == none);
        // That there is none is no error of the one before it.
        assert_eq!(loads(2), none);
        let model = ModelConfig::from_json(&form.config_json()).unwrap();
        let config = model.mlp_config(&form.prefix()).unwrap();
        SharedExpert::load(&checkpoint, &config).unwrap();
        assert_eq!(loads(4), after(5));
    }

    /// Bytes of a file's mapping that are in this process's memory.
    #[cfg(target_os = "linux")]
    fn resident(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let name = path.to_str().unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<usize>().unwrap() << 10
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dropped_expert_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let form = SyntheticConfig {
            hidden: 1024,
            intermediate: 512,
            ..SyntheticConfig::flash(1)
        };
        write_checkpoint(folder.path(), &form).unwrap();
        let path = folder.path().canonicalize().unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = ModelConfig::from_json(&form.config_json()).unwrap();
        let config = model.mlp_config(&form.prefix()).unwrap();
        let expert = SharedExpert::load(&checkpoint, &config).unwrap();
        let sum = |expert: &SharedExpert<'_>| -> usize {
            let weights = [expert.gate(), expert.up(), expert.down()];
            let bytes = weights.into_iter().flat_map(|weight| weight.data());
            bytes.map(|&byte| usize::from(byte)).sum()
        };
        let before = sum(&expert);
        let weights = 3 * 1024 * 512;
        assert!(resident(checkpoint.path()) >= weights);
        let copy = expert.clone();
        drop(expert);
        // Header and scales stay.
        assert!(resident(checkpoint.path()) < weights / 4);
        assert_eq!(sum(&copy), before);
    }

    #[test]
    fn the_last_number_of_a_prefix_is_the_layer_s() {
        assert_eq!(following("a.9.b").as_deref(), Some("a.10.b"));
        assert_eq!(
            following("experts.1.layer.99").as_deref(),
            Some("experts.1.layer.100")
        );
        assert_eq!([following("a"), following("a.4294967295.b")], [None, None]);
    }
}
