//! The laboratory itself: hosts reach each other, and a name server answers.

use meridian_testkit::net::Lab;
use meridian_testkit::process::Program;
use meridian_testkit::wait::DEADLINE;

const APP: &str = env!("CARGO_BIN_EXE_meridian-app");

#[tokio::test]
async fn hosts_of_two_networks_reach_each_other() {
    let lab = Lab::new("lab").await.unwrap();
    let east = lab.network(&["10.1.0.1/24", "fd00:1::1/64"]).await.unwrap();
    let world = lab.network(&["10.9.0.1/24", "fd00:9::1/64"]).await.unwrap();
    let web = lab.host("web", &east, &["10.1.0.101", "fd00:1::101"]).await.unwrap();
    let internet = lab
        .host("internet", &world, &["10.9.0.9", "fd00:9::9", "192.0.2.53", "192.0.2.10", "2001:db8::10"])
        .await
        .unwrap();
    lab.route("192.0.2.0/24", &internet).await.unwrap();
    lab.route("2001:db8::/32", &internet).await.unwrap();
    let start = |name: &str, words: &[&str]| {
        internet.spawn(Program::new(name, [APP]).arg(words[0]).arg("--listen").arg(words[1])).unwrap()
    };
    let mut http = start("http", &["http", "192.0.2.10:80"]);
    let mut http6 = start("http6", &["http", "[2001:db8::10]:80"]);
    let names = Program::new(
        "dns",
        [APP, "dns", "--listen", "192.0.2.53:53", "--record", "api.example.com=192.0.2.10"],
    );
    let mut dns = internet.spawn(names).unwrap();
    for process in [&mut http, &mut http6, &mut dns] {
        process.wait_for_log("listening on", DEADLINE).await.unwrap();
    }

    let seen = web.run(&["curl", "-sS", "--max-time", "5", "http://192.0.2.10/"]).await.unwrap();
    assert!(seen.contains(r#""peer":"10.1.0.101""#), "{seen}");
    let seen = web.run(&["curl", "-sS", "--max-time", "5", "http://[2001:db8::10]/"]).await.unwrap();
    assert!(seen.contains(r#""peer":"fd00:1::101""#), "{seen}");

    let resolver = web.resolver(&["192.0.2.53".parse().unwrap()]).unwrap();
    let curl = Program::new("curl", ["curl", "-sS", "--max-time", "5", "http://api.example.com/"])
        .resolver(&resolver)
        .uid(1000);
    let mut curl = web.spawn(curl).unwrap();
    assert!(curl.wait(DEADLINE).await.unwrap().success(), "{}", curl.log());
    assert!(curl.log().contains(r#""app":"app""#), "{}", curl.log());
}

#[tokio::test]
async fn a_process_ends_with_its_owner() {
    let lab = Lab::new("own").await.unwrap();
    let network = lab.network(&["10.1.0.1/24"]).await.unwrap();
    let host = lab.host("web", &network, &["10.1.0.101"]).await.unwrap();
    let mut process = host.spawn(Program::new("tcp", [APP, "tcp", "--listen", "10.1.0.101:7"])).unwrap();
    process.wait_for_log("listening on", DEADLINE).await.unwrap();
    let pid = process.pid().unwrap();
    drop(process);
    meridian_testkit::wait::until("the process to end", DEADLINE, || async {
        anyhow::ensure!(
            !std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists_with_content(),
            "still there"
        );
        Ok(())
    })
    .await
    .unwrap();
}

trait ExistsWithContent {
    fn exists_with_content(&self) -> bool;
}

impl ExistsWithContent for std::path::Path {
    /// A zombie's command line is empty.
    fn exists_with_content(&self) -> bool {
        std::fs::read(self).is_ok_and(|bytes| !bytes.is_empty())
    }
}
