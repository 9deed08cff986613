//! Which adapter is taken: by number, by name, and by wgpu's own variables.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use swiglu_wgpu::{WgpuBackend, adapters};

/// What the ignored test prints before the number of each adapter.
const MARK: &str = "adapter ";

/// Not a test of its own: it tells another process what adapters there are.
#[test]
#[ignore = "another test runs it, with variables set"]
fn tells_the_adapters() {
    for adapter in adapters() {
        println!("\n{MARK}{adapter}");
    }
    if let Err(reason) = WgpuBackend::open() {
        println!("\nnothing: {reason}");
    }
}

/// The lines that a process with these variables prints.
fn told(variables: &[(&str, &str)]) -> (Vec<String>, Output) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tells_the_adapters", "--ignored", "--nocapture"]);
    for name in ["WGPU_BACKEND", "WGPU_ADAPTER_NAME", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command.env("SWIGLU_ALLOW_SOFTWARE", "1");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (text.lines().map(str::to_owned).collect(), output)
}

fn skipped() -> bool {
    let missing = adapters().is_empty();
    if missing {
        swiglu_conformance::may_skip("wgpu", "no adapter", "adapters");
    }
    missing
}

#[test]
fn an_adapter_is_taken_by_its_number_and_another_number_lists_them() {
    if skipped() {
        return;
    }
    let builder = WgpuBackend::builder().allow_software(true);
    let all = builder.adapters();
    for (i, adapter) in all.iter().enumerate() {
        assert_eq!(adapter.number, i);
        let opened = builder.clone().device(Some(i)).open();
        match &adapter.rejection {
            None => assert_eq!(opened.unwrap().device().info().name, adapter.info.name),
            Some(reason) => assert!(opened.unwrap_err().to_string().contains(reason)),
        }
    }
    let error = builder.device(Some(all.len())).open().unwrap_err();
    let error = error.to_string();
    let expected = "device: expected the number of an adapter (0: ";
    assert!(error.contains(expected), "{error}");
    assert!(error.contains(&all[0].info.name), "{error}");
    assert!(error.ends_with(&format!("got {}", all.len())), "{error}");
}

#[test]
fn wgpus_variables_choose() {
    if skipped() {
        return;
    }
    let (all, _) = told(&[]);
    let name = adapters()[0].info.name.clone();
    let first = format!("{MARK}0: {name}");
    assert!(all.iter().any(|line| line.starts_with(&first)), "{all:?}");
    assert!(
        !all.iter().any(|line| line.starts_with("nothing")),
        "{all:?}"
    );

    // The same adapters, none of which is called so.
    let (none, _) = told(&[("WGPU_ADAPTER_NAME", "no such adapter")]);
    let reason = "not called `no such adapter` (WGPU_ADAPTER_NAME)";
    let listed = none.iter().filter(|line| line.starts_with(MARK));
    assert!(
        listed.clone().count() >= 1 && listed.clone().all(|l| l.ends_with(reason)),
        "{none:?}"
    );
    assert!(
        none.iter()
            .any(|line| line.starts_with("nothing: no adapter"))
    );
    let part = name[..name.len() / 2].to_uppercase();
    let (some, _) = told(&[("WGPU_ADAPTER_NAME", &part)]);
    assert!(some.contains(&all.iter().find(|l| l.starts_with(MARK)).unwrap().clone()));

    // An interface that this machine does not have.
    let other = if cfg!(windows) { "metal" } else { "dx12" };
    let (none, _) = told(&[("WGPU_BACKEND", other)]);
    assert!(!none.iter().any(|line| line.starts_with(MARK)), "{none:?}");
    let said = format!("WGPU_BACKEND={other} leaves the others out");
    assert!(none.iter().any(|line| line.contains(&said)), "{none:?}");
}
