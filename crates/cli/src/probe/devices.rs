//! The devices of a platform, by the numbers that `--device` takes.

use std::fmt;

use serde::Serialize;

/// A device that a platform lists.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct NumberedDevice {
    /// What `--device` takes.
    pub number: usize,
    pub description: String,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<String>,
}

impl fmt::Display for NumberedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}: {}", self.number, self.description)?;
        match &self.rejection {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// The devices of a platform in their order. One whose list is not known here has at least the
/// device that was opened, as `number`.
pub fn listed(platform: &str, number: usize, opened: Option<&str>) -> Vec<NumberedDevice> {
    match platform {
        // Without a driver the platform's own line says why.
        #[cfg(feature = "cuda")]
        "cuda" => numbered(
            swiglu::cuda::devices()
                .unwrap_or_default()
                .into_iter()
                .map(|device| {
                    let (major, minor) = device.compute_capability;
                    let old = || "older than compute capability 8.0".to_owned();
                    let rejection = (!device.is_supported()).then(old);
                    (format!("{}, sm_{major}{minor}", device.name), rejection)
                }),
        ),
        #[cfg(feature = "wgpu")]
        "wgpu" => numbered(swiglu::wgpu::adapters().into_iter().map(|adapter| {
            let rejection = adapter.rejection.clone();
            let described = swiglu::wgpu::AdapterReport {
                rejection: None,
                ..adapter
            };
            (described.to_string(), rejection)
        })),
        _ => {
            let device = |description: &str| NumberedDevice {
                number,
                description: description.to_owned(),
                rejection: None,
            };
            opened.map(device).into_iter().collect()
        }
    }
}

/// Descriptions and rejections with their numbers.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn numbered(devices: impl Iterator<Item = (String, Option<String>)>) -> Vec<NumberedDevice> {
    let device = |(number, (description, rejection))| NumberedDevice {
        number,
        description,
        rejection,
    };
    devices.enumerate().map(device).collect()
}
