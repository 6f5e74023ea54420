//! What the egress itself answers, in its clients' own terms.

use super::*;

const GRPC: &str = "POST /shop.Cart/Add HTTP/1.1\r\nHost: api.example\r\nContent-Type: application/grpc\r\n\
                    Content-Length: 0\r\n\r\n";

/// An entry at which nobody listens.
async fn unreachable(egress: &mut Egress) {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let entry = entry(Protocol::Http, gone);
    egress.entry(&entry);
}

#[tokio::test]
async fn a_call_of_grpc_that_fails_is_told_so_in_its_terms() {
    local(async {
        let mut egress = Egress::start(Resolver::default()).await;
        unreachable(&mut egress).await;
        let mut web = egress.call("web", "api", "api.example", 443).await;
        assert!(get(&mut web, "api.example", "/").await.starts_with("HTTP/1.1 503 "));
        for (host, status) in [("api.example", "14"), ("other.example", "7")] {
            web.write_all(GRPC.replace("api.example", host).as_bytes()).await.unwrap();
            let answer = response(&mut web).await;
            assert!(
                answer.starts_with("HTTP/1.1 200 ")
                    && answer.contains(&format!("grpc-status: {status}\r\n"))
                    && answer.contains("content-type: application/grpc\r\n")
                    && answer.ends_with("\r\n\r\n"),
                "{answer}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_whose_end_is_told_in_two_ways_ends_its_connection() {
    local(async {
        for framing in
            ["Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"]
        {
            let mut egress = Egress::start(Resolver::default()).await;
            egress.entry(&entry(Protocol::Http, site().await));
            let mut web = egress.call("web", "api", "api.example", 443).await;
            let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api.example\r\n\r\n";
            let request =
                format!("POST / HTTP/1.1\r\nHost: api.example\r\n{framing}\r\n\r\n0\r\n\r\n{smuggled}");
            web.write_all(request.as_bytes()).await.unwrap();
            let (answers, _) = rest(&mut web).await;
            let answers = String::from_utf8(answers).unwrap();
            assert!(answers.starts_with("HTTP/1.1 400 "), "{framing}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{framing}: {answers}");
        }
    })
    .await;
}
