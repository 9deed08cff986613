//! Tensors in safetensors files: one file, or several with an index.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use swiglu_mmap::MappedFile;

use crate::{Error, Result};

mod header;
mod index;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model, mapped from its files. Nothing is read before it is used.
///
/// Every header is checked when it is opened: what a tensor claims lies inside its file and
/// overlaps no other. The files must not change while they are open: see [`MappedFile`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<ShardFile>,
    tensors: BTreeMap<String, TensorPlace>,
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    bytes: MappedFile,
}

/// Where a tensor lies, checked against its file.
#[derive(Debug)]
struct TensorPlace {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A tensor as its file has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredTensor<'a> {
    pub name: &'a str,
    pub path: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, one such index
    /// (a `.json` file), or one file of tensors (any other).
    ///
    /// # Errors
    /// A folder with neither or both, a file that cannot be read, a header or an index that lies.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            let (single, index) = (path.join(SINGLE), path.join(INDEX));
            match (single.exists(), index.exists()) {
                (true, false) => single,
                (false, true) => index,
                (found, _) => {
                    let found = if found { "both" } else { "neither" };
                    let problem = format!("expected {SINGLE} or {INDEX}, found {found}");
                    return Err(Error::file(path, problem));
                }
            }
        } else {
            path.to_owned()
        };
        let mut checkpoint = Self {
            path: file.clone(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if file.extension().is_some_and(|e| e == "json") {
            checkpoint.open_index(&file)?;
        } else {
            checkpoint.open_file(file)?;
        }
        Ok(checkpoint)
    }

    /// The file that was opened: that of the tensors, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Maps a file and adds its tensors.
    fn open_file(&mut self, path: PathBuf) -> Result<()> {
        let bytes = MappedFile::open(&path).map_err(|e| Error::io(&path, e))?;
        let file = self.files.len();
        for tensor in header::read(&path, &bytes)? {
            if let Some(other) = self.tensors.get(&tensor.name) {
                let problem = format!("also in {}", self.files[other.file].path.display());
                return Err(Error::tensor(&tensor.name, &path, problem));
            }
            let place = TensorPlace {
                file,
                dtype: tensor.info.dtype,
                shape: tensor.info.shape,
                bytes: tensor.bytes,
            };
            self.tensors.insert(tensor.name, place);
        }
        self.files.push(ShardFile { path, bytes });
        Ok(())
    }

    /// Opens every shard of an index and checks that each holds what the index says.
    fn open_index(&mut self, path: &Path) -> Result<()> {
        let listed = index::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<&str> = listed.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in &shards {
            self.open_file(folder.join(shard))?;
        }
        for (name, shard) in &listed {
            let found = self.tensors.get(name).map(|p| p.file);
            if found.is_none_or(|file| shards[file] != shard) {
                let problem = format!("not there, though {} says so", path.display());
                return Err(Error::tensor(name, &folder.join(shard), problem));
            }
        }
        match self
            .tensors
            .iter()
            .find(|(name, _)| !listed.contains_key(*name))
        {
            None => Ok(()),
            Some((name, place)) => {
                let problem = format!("not listed in {}", path.display());
                Err(Error::tensor(name, &self.files[place.file].path, problem))
            }
        }
    }

    /// The tensors whose names begin with `prefix` and a dot.
    pub(crate) fn under(&self, prefix: &str) -> Vec<StoredTensor<'_>> {
        let prefix = format!("{prefix}.");
        self.tensors
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(name, place)| {
                let file = &self.files[place.file];
                StoredTensor {
                    name,
                    path: &file.path,
                    dtype: place.dtype,
                    shape: &place.shape,
                    data: &file.bytes[place.bytes.clone()],
                }
            })
            .collect()
    }
}
