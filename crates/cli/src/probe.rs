use std::io::Write;

use serde_json::json;
use swiglu::{DType, GatedActivation};

use crate::act::dispatcher;
use crate::arguments::Probe;
use crate::failure::Result;

/// `swiglu probe`: every platform with its device or the reason that there is none, then what a
/// DeepSeek-V4 activation in bf16 would run on.
pub fn probe(arguments: &Probe, out: &mut impl Write) -> Result<()> {
    let dispatcher = dispatcher(None)?;
    let op = GatedActivation::deepseek_v4();
    let chosen = dispatcher.device(&op, DType::BF16)?;
    let probed = dispatcher.registry().probe_all();
    let report = chosen.report();
    if arguments.json {
        let platforms: Vec<_> = probed
            .iter()
            .map(|(platform, opened)| match opened {
                Ok(backend) => json!({
                    "platform": platform,
                    "available": true,
                    "device": backend.description(),
                }),
                Err(reason) => json!({
                    "platform": platform,
                    "available": false,
                    "reason": reason,
                }),
            })
            .collect();
        let rejected: Vec<_> = report
            .rejected
            .iter()
            .map(|r| json!({ "platform": r.platform, "reason": r.reason }))
            .collect();
        let value = json!({
            "platforms": platforms,
            "chosen": report.chosen,
            "support": report.support.to_string(),
            "rejected": rejected,
        });
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    for (platform, opened) in &probed {
        match opened {
            Ok(backend) => writeln!(out, "{platform:<10} {}", backend.description())?,
            Err(reason) => writeln!(out, "{platform:<10} not available: {reason}")?,
        }
    }
    writeln!(out, "chosen     {report}")?;
    Ok(())
}
