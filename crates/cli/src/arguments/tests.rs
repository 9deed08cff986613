use swiglu::{Accumulation, Parameter, Parameters};

use super::*;

fn bench(arguments: &[&str]) -> Result<Bench, String> {
    let all = ["swiglu", "bench"].iter().chain(arguments);
    match Arguments::try_parse_from(all) {
        Ok(Arguments {
            command: Command::Bench(bench),
        }) => Ok(bench),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_command_is_well_formed() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}

fn act(flag: &str) -> Option<Parameters> {
    let flags = ["--op", "x", "--input", "i", "--output", "o", flag];
    let all = ["swiglu", "act"].into_iter().chain(flags);
    match Arguments::try_parse_from(all).ok()?.command {
        Command::Act(act) => Some(act.settings.parameters.0),
        _ => None,
    }
}

#[test]
fn every_parameter_of_the_table_has_its_flag() {
    for parameter in Parameter::ALL {
        let flag = format!("--{}", parameter.name().replace('_', "-"));
        let given = act(&format!("{flag}=-0.5")).unwrap();
        for other in Parameter::ALL {
            let expected = (other == parameter).then_some(Some(-0.5));
            assert_eq!(given.get(other), expected, "{flag}");
        }
        let off = act(&format!("{flag}=none")).and_then(|p| p.get(parameter));
        assert_eq!(off == Some(None), parameter.may_be_none(), "{flag}");
        assert!(act(&format!("{flag}=some")).is_none());
    }
}

#[test]
fn classes_of_sums_have_their_names() {
    for class in Accumulation::ALL {
        let bench = bench(&["--accumulation", class.name()]).unwrap();
        assert_eq!(bench.device.accumulation, Some(class));
    }
    let message = bench(&["--accumulation", "fast"]).unwrap_err();
    for class in Accumulation::ALL {
        assert!(message.contains(class.name()), "{message}");
    }
}

#[test]
fn shapes_are_models_or_sizes() {
    let shape = |text: &str| {
        let shape = bench(&["--shape", text])?.shape;
        Ok::<_, String>((shape.hidden, shape.intermediate, shape.block))
    };
    assert_eq!(shape("flash"), Ok((4096, 2048, 128)));
    assert_eq!(shape("pro"), Ok((7168, 3072, 128)));
    assert_eq!(shape("v41"), Ok((5120, 2304, 32)));
    assert_eq!(shape("96x64"), Ok((96, 64, 128)));
    for bad in ["x", "0x4", "4x0", "4096", "4x4x4", "2000000x4"] {
        let error = shape(bad).unwrap_err();
        assert!(error.contains("expected flash, pro, v41"), "{error}");
    }
}

#[test]
fn what_is_timed_is_an_activation_or_the_mlp_or_both() {
    let both = bench(&[]).unwrap();
    assert!(both.op.is_none() && !both.mlp && both.dtype.is_none());
    assert_eq!(both.tokens, [1, 4, 16, 64, 256]);
    let mlp = bench(&["--mlp", "--dtype", "bf16", "--tokens", "2,8"]).unwrap();
    assert_eq!(
        (mlp.tokens, mlp.dtype),
        (vec![2, 8], Some(TypeArgument::Bf16))
    );
    for bad in [
        &["--mlp", "--op", "silu_and_mul"][..],
        &["--dtype", "bf16"],
        &["--op", "silu_and_mul", "--activations", "fp8"],
        &["--op", "silu_and_mul", "--group", "32"],
        &["--tokens", "0"],
        &["--seconds", "0"],
        &["--seconds", "nan"],
    ] {
        assert!(bench(bad).is_err(), "{bad:?}");
    }
}
