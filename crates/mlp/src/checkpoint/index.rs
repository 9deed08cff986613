use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::contents::read_text;
use crate::json::UniqueMap;
use crate::{Error, Result};

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: UniqueMap<String>,
}

/// The shard of each tensor: the name of a file in the index's own folder.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = read_text(path)?;
    let ShardIndex {
        weight_map: UniqueMap(map),
    } = serde_json::from_str(&text).map_err(|e| Error::file(path, e))?;
    for (tensor, shard) in &map {
        let mut parts = Path::new(shard).components();
        let plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(name)), None) if name == shard.as_str()
        );
        if !plain {
            let problem = format!("its shard \"{shard}\" is no file's name in the index's folder");
            return Err(Error::tensor(tensor, path, problem));
        }
    }
    Ok(map)
}
