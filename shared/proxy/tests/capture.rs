//! The capture rules in the kernel: a host and an outside, each a network namespace. Needs root, nft and ip.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use meridian_proxy::capture::{self, Enforce, Options, Places};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Uid, setfsuid},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const PROXY: u32 = 5678;
const APP: u32 = 1234;
const DEADLINE: Duration = Duration::from_secs(10);
/// Of the outside; documentation addresses.
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const HOST: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

fn sh(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a test on a thread in a fresh namespace, beside the namespace of an outside with that name.
fn on_a_host(test: impl FnOnce(&Outside) + Send + 'static) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("mcap{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let run = move || {
        sh(&format!("ip netns add {name}"));
        let outside = Outside(name);
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        let there = format!("ip -n {}", outside.0);
        sh("ip link set lo up");
        sh(&format!("ip link add eth0 type veth peer name eth0 netns {}", outside.0));
        for command in [
            "link set lo up",
            "link set eth0 up",
            "addr add 198.51.100.1/24 dev eth0",
            "addr add 2001:db8:1::1/64 dev eth0 nodad",
            "addr add 192.0.2.1/32 dev lo",
            "addr add 2001:db8::1/128 dev lo nodad",
        ] {
            sh(&format!("{there} {command}"));
        }
        sh("ip addr add 198.51.100.2/24 dev eth0");
        sh("ip addr add 2001:db8:1::2/64 dev eth0 nodad");
        sh("ip link set eth0 up");
        sh("ip route add default via 198.51.100.1");
        sh("ip -6 route add default via 2001:db8:1::1");
        test(&outside);
    };
    thread::spawn(run).join().unwrap();
}

/// The namespace on the other end of the cable.
struct Outside(String);

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl Outside {
    /// Runs something over there.
    fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        })
        .join()
        .unwrap()
    }

    fn listen(&self, address: &'static str, port: u16) -> TcpListener {
        let listener = self.run(move || bound(|| TcpListener::bind((address, port))));
        listener.set_nonblocking(true).unwrap();
        listener
    }

    fn udp(&self, address: &'static str, port: u16) -> UdpSocket {
        let socket = self.run(move || bound(|| UdpSocket::bind((address, port))));
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }
}

/// A socket at a port that the test may have closed just before. A command that another test's thread starts holds a
/// copy of every open socket from its fork to its exec, and with it the port.
fn bound<T>(bind: impl Fn() -> io::Result<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

/// Runs something as another user, in the namespace of the caller.
fn as_user<T: Send + 'static>(uid: u32, what: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(move || {
        setfsuid(Uid::from_raw(uid));
        what()
    })
    .join()
    .unwrap()
}

fn connect(uid: u32, address: &str, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    as_user(uid, move || TcpStream::connect_timeout(&address, Duration::from_secs(2)))
}

fn send_udp(uid: u32, address: &str, port: u16) -> io::Result<UdpSocket> {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    as_user(uid, move || {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        Ok(socket)
    })
}

fn listen(address: &str, port: u16) -> TcpListener {
    let listener = bound(|| TcpListener::bind((address, port)));
    listener.set_nonblocking(true).unwrap();
    listener
}

fn accept(listener: &TcpListener) -> TcpStream {
    let until = Instant::now() + DEADLINE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => {
                assert!(error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until, "{error}")
            }
        }
        thread::yield_now();
    }
}

fn nobody_came(listener: &TcpListener) -> bool {
    listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// As the proxy asks for it.
fn original(stream: TcpStream) -> SocketAddr {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        capture::original_destination(&stream).unwrap()
    })
}

fn options(enforce: Enforce) -> Options {
    Options { enforce, proxy_uid: PROXY, ..Options::default() }
}

fn loopback(address: &str) -> &'static str {
    if address.contains(':') { "::1" } else { "127.0.0.1" }
}

#[test]
fn strict_lets_nothing_out_beside_the_proxy() {
    on_a_host(|outside| {
        let options = options(Enforce::Strict);
        // The check can fail: without rules everything gets out.
        let before = capture::check(&options, APP).unwrap();
        assert!(before.attempts.iter().all(|attempt| attempt.escaped), "{before:#?}");
        capture::install(&options).unwrap();
        let after = capture::check(&options, APP).unwrap();
        assert!(after.holds(), "{after:#?}");
        assert_eq!(after.attempts.len(), 18);
        // Another user and root fare no better.
        assert!(capture::check(&options, 0).unwrap().holds());
        for address in OUTSIDE {
            let far = outside.listen(address, 443);
            // The application is taken to the proxy, which knows where it was going.
            let proxy = listen(loopback(address), 15001);
            let _app = connect(APP, address, 443).unwrap();
            assert_eq!(original(accept(&proxy)), SocketAddr::new(address.parse().unwrap(), 443));
            assert!(nobody_came(&far));
            // The proxy itself gets out.
            let _own = connect(PROXY, address, 443).unwrap();
            drop(accept(&far));
        }
    });
}

#[test]
fn refused_packets_are_told_so() {
    on_a_host(|_| {
        capture::install(&options(Enforce::Strict)).unwrap();
        for address in OUTSIDE {
            // A connected socket hears of the rejection: QUIC falls back to TCP at once.
            let error = match send_udp(APP, address, 443) {
                Err(error) => error,
                Ok(socket) => {
                    socket.set_read_timeout(Some(DEADLINE)).unwrap();
                    socket.recv(&mut [0; 9]).unwrap_err()
                }
            };
            assert!(
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                "{address}: {error}"
            );
        }
        // No proxy: traffic stops at once.
        let error = connect(APP, OUTSIDE[0], 443).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn dns_comes_to_the_resolver_by_both_transports() {
    on_a_host(|_| {
        capture::install(&options(Enforce::Strict)).unwrap();
        for address in OUTSIDE {
            let resolver = bound(|| UdpSocket::bind((loopback(address), 15053)));
            resolver.set_read_timeout(Some(DEADLINE)).unwrap();
            let app = send_udp(APP, address, 53).unwrap();
            let mut buffer = [0; 9];
            let (length, client) = resolver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"hello");
            // The answer comes from the server that was asked.
            resolver.send_to(b"answer", client).unwrap();
            app.set_read_timeout(Some(DEADLINE)).unwrap();
            assert_eq!(app.recv(&mut buffer).unwrap(), 6);
            let tcp = listen(loopback(address), 15053);
            let _app = connect(APP, address, 53).unwrap();
            drop(accept(&tcp));
        }
    });
}

#[test]
fn virtual_addresses_reach_the_proxy_and_nothing_else_does() {
    on_a_host(|_| {
        // Without any way to the world: the route that is installed is enough.
        sh("ip route del default");
        capture::install(&options(Enforce::Strict)).unwrap();
        let proxy = listen("127.0.0.1", 15001);
        let _app = connect(APP, "241.0.0.7", 80).unwrap();
        assert_eq!(original(accept(&proxy)), "241.0.0.7:80".parse().unwrap());
        // As an IPv6 client writes it.
        let _app = connect(APP, "::ffff:242.0.0.7", 443).unwrap();
        assert_eq!(original(accept(&proxy)), "242.0.0.7:443".parse().unwrap());
        let rejected = match send_udp(APP, "241.0.0.7", 9) {
            Err(_) => true,
            Ok(socket) => {
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                socket.recv(&mut [0; 9]).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
            }
        };
        assert!(rejected);
    });
}

#[test]
fn inbound_connections_come_to_the_proxy_and_excluded_ones_do_not() {
    on_a_host(|outside| {
        capture::install(&Options { exclude_inbound_ports: vec![22.into()], ..options(Enforce::Strict) })
            .unwrap();
        for (address, any) in HOST.into_iter().zip(["0.0.0.0", "::"]) {
            let proxy = listen(any, 15006);
            let client = outside.run(move || TcpStream::connect((address, 8080)).unwrap());
            assert_eq!(original(accept(&proxy)), SocketAddr::new(address.parse().unwrap(), 8080));
            drop(client);
            // SSH: bytes both ways, answered by a user that is not the proxy's.
            let shell = as_user(APP, move || listen(any, 22));
            let mut client = outside.run(move || TcpStream::connect((address, 22)).unwrap());
            let mut session = accept(&shell);
            session.set_nonblocking(false).unwrap();
            session.write_all(b"SSH-2.0").unwrap();
            let mut got = [0; 7];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"SSH-2.0");
            assert!(nobody_came(&proxy));
            // What listens there can't call out by it.
            let far = outside.udp(OUTSIDE[0], 4444);
            let _ = send_udp(APP, OUTSIDE[0], 4444);
            assert!(far.recv(&mut [0; 9]).is_err());
        }
    });
}

#[test]
fn an_instance_reaches_its_own_inbound_through_the_mesh() {
    on_a_host(|_| {
        capture::install(&options(Enforce::Strict)).unwrap();
        let inbound = listen("0.0.0.0", 15006);
        let _own = connect(PROXY, HOST[0], 8080).unwrap();
        assert_eq!(original(accept(&inbound)), SocketAddr::new(HOST[0].parse().unwrap(), 8080));
        // And the inbound reaches the application, from the address that says so.
        let application = listen(HOST[0], 8080);
        let _app = as_user(PROXY, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SocketAddr::new(capture::APPLICATION_SOURCE_V4, 0).into()).unwrap();
            socket.connect(&SocketAddr::new(HOST[0].parse().unwrap(), 8080).into()).unwrap();
            socket
        });
        drop(accept(&application));
        let application = listen(HOST[1], 8080);
        let _app = as_user(PROXY, || {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SocketAddr::new(capture::APPLICATION_SOURCE_V6, 0).into()).unwrap();
            socket.connect(&SocketAddr::new(HOST[1].parse().unwrap(), 8080).into()).unwrap();
            socket
        });
        drop(accept(&application));
        // Loopback is nobody's business.
        let local = listen("127.0.0.1", 9999);
        let _app = connect(APP, "127.0.0.1", 9999).unwrap();
        drop(accept(&local));
    });
}

/// The kernel sends the rest of a closed socket's data without an owner: the rules must still know whose it is.
#[test]
fn what_the_proxy_wrote_before_closing_arrives() {
    on_a_host(|outside| {
        capture::install(&options(Enforce::Strict)).unwrap();
        for address in OUTSIDE {
            let far = outside.listen(address, 443);
            let mut own = connect(PROXY, address, 443).unwrap();
            let mut received = accept(&far);
            let data = vec![7; 1 << 20];
            // More than the receiver takes at once: most of it is sent after the close.
            own.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while let Ok(count @ 1..) = own.write(&data[sent..]) {
                sent += count;
            }
            drop(own);
            received.set_nonblocking(false).unwrap();
            received.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut got = Vec::new();
            received.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), sent);
        }
    });
}

#[test]
fn exclusions_are_holes_of_exactly_their_size() {
    on_a_host(|outside| {
        let options = Options {
            exclude_outbound_ports: vec![5432.into()],
            exclude_outbound_ports_for_uids: vec!["udp:4000:77".parse().unwrap()],
            exclude_uids: vec!["88".parse().unwrap()],
            exclude_ntp: true,
            exclude_outbound_ips: vec!["198.51.100.1/32".parse().unwrap()],
            ..options(Enforce::Strict)
        };
        capture::install(&options).unwrap();
        let address = OUTSIDE[0];
        let database = outside.listen(address, 5432);
        let _app = connect(APP, address, 5432).unwrap();
        drop(accept(&database));
        let got_out = |uid, to, port| {
            let far = outside.udp(to, port);
            let _ = send_udp(uid, to, port);
            far.recv(&mut [0; 9]).is_ok()
        };
        assert!(got_out(77, address, 4000) && !got_out(APP, address, 4000) && !got_out(77, address, 4001));
        assert!(got_out(88, address, 4002));
        assert!(got_out(APP, address, 123));
        assert!(got_out(APP, "198.51.100.1", 4003));
    });
}

#[test]
fn kuma_mode_takes_tcp_and_dns_and_lets_the_rest_go() {
    on_a_host(|outside| {
        capture::install(&options(Enforce::Kuma)).unwrap();
        let far = outside.udp(OUTSIDE[0], 4444);
        send_udp(APP, OUTSIDE[0], 4444).unwrap();
        assert_eq!(far.recv(&mut [0; 9]).unwrap(), 5);
        let report = capture::check(&options(Enforce::Kuma), APP).unwrap();
        let escaped = |attempt: &capture::Attempt| attempt.escaped;
        assert!(
            report
                .attempts
                .iter()
                .filter(|a| a.what.starts_with("tcp") || a.what.ends_with(":53"))
                .all(|a| !escaped(a))
        );
        assert!(report.attempts.iter().filter(|a| a.what.starts_with("ping")).all(escaped));
    });
}

#[test]
fn rules_are_replaced_whole_and_taken_away_whole() {
    on_a_host(|outside| {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            rules: directory.path().join("m/rules.nft"),
            unit: directory.path().join("m/m.service"),
            notice: directory.path().join("m/capture.json"),
        };
        let options = Options { persist: true, places: places.clone(), ..options(Enforce::Strict) };
        let installed = capture::install(&options).unwrap();
        assert_eq!(installed.enforcement, "strict");
        assert_eq!(capture::noticed(&places.notice).as_deref(), Some("strict"));
        assert_eq!(std::fs::read_to_string(&places.rules).unwrap(), installed.script);
        assert!(places.unit.exists());
        // Again, and with a part that the kernel does not take: the rules that are there stay.
        capture::install(&options).unwrap();
        let table = || {
            String::from_utf8(
                Command::new("nft").args(["list", "table", "inet", "meridian"]).output().unwrap().stdout,
            )
        };
        let before = table().unwrap();
        let wrong = Options { vips: vec!["10.0.0.0/8".parse().unwrap(); 1], proxy_uid: 0, ..options.clone() };
        assert!(capture::install(&wrong).is_err());
        let broken = format!("{}\nadd rule inet meridian nowhere accept\n", capture::script(&options));
        let mut nft =
            Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(broken.as_bytes()).unwrap();
        assert!(!nft.wait().unwrap().success());
        assert_eq!(table().unwrap(), before);
        capture::uninstall(&options).unwrap();
        assert!(table().unwrap().is_empty() && !places.unit.exists() && !places.rules.exists());
        assert_eq!(capture::noticed(&places.notice), None);
        let routes = Command::new("ip").args(["route", "show", "240.0.0.0/5"]).output().unwrap();
        assert!(routes.stdout.is_empty());
        let far = outside.listen(OUTSIDE[0], 443);
        let _app = connect(APP, OUTSIDE[0], 443).unwrap();
        drop(accept(&far));
        capture::uninstall(&options).unwrap();
    });
}

#[test]
fn an_interface_of_ones_choice_is_no_way_out_for_loopback() {
    on_a_host(|_| {
        sh("nft add table inet probe");
        sh("nft add chain inet probe out { type filter hook postrouting priority 300 ; }");
        sh("nft add rule inet probe out oifname eth0 ip daddr 127.0.0.0/8 counter");
        sh("nft add rule inet probe out oifname eth0 ip6 daddr ::1 counter");
        let send = || {
            for address in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(address.parse().unwrap(), 7000);
                // Refused or not: the counters tell.
                drop(as_user(APP, move || {
                    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
                    socket.bind_device(Some(b"eth0"))?;
                    socket.send_to(b"hello", &to.into())
                }));
            }
        };
        let left = || {
            let output = Command::new("nft").args(["list", "table", "inet", "probe"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines()
                .filter(|line| line.contains("counter packets") && !line.contains("packets 0 "))
                .count()
        };
        send();
        assert!(left() > 0, "without rules such packets do not leave either: this test shows nothing");
        capture::install(&options(Enforce::Strict)).unwrap();
        sh("nft flush chain inet probe out");
        sh("nft add rule inet probe out oifname eth0 ip daddr 127.0.0.0/8 counter");
        sh("nft add rule inet probe out oifname eth0 ip6 daddr ::1 counter");
        send();
        assert_eq!(left(), 0);
    });
}
