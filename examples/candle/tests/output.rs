//! What the program prints is what its README says.

#[test]
fn the_readme_shows_what_the_program_prints() {
    let program = env!("CARGO_BIN_EXE_candle-engine");
    let output = std::process::Command::new(program).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().count(), 2, "{printed}");
    let readme = include_str!("../README.md");
    assert!(
        readme.contains(&format!("```text\n{printed}```\n")),
        "it prints\n{printed}"
    );
}
