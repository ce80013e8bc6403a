//! The upgrade path against a far side that does as it is told.

use std::sync::Arc;

use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{exec_request, read_exactly, read_to_end};
use podgate::testing::{FakeCluster, Far, Pki, TestGateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn gateway(far: &Far, pki: Arc<Pki>) -> TestGateway {
    let cluster = FakeCluster::new();
    cluster.node("n", far.addr.port());
    cluster.simple_pod("default/web", "n");
    TestGateway::start(pki, cluster).await
}

#[tokio::test]
async fn item_041_the_101_head_reaches_the_client_byte_for_byte() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        io.write_all(SWITCHING).await.unwrap();
        let _ = io.read_u8().await;
    })
    .await;
    let gateway = gateway(&far, pki).await;
    let mut client = gateway.connect_as("ana").await;
    client.write_all(&exec_request("command=id&stdout=1", "")).await.unwrap();
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop(client);
    gateway.stop().await;
}

#[tokio::test]
async fn item_042_bytes_after_the_101_and_early_bytes_arrive_once_and_in_order() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        io.write_all(&[SWITCHING, b"right behind"].concat()).await.unwrap();
        let mut early = [0; 10];
        io.read_exact(&mut early).await.unwrap();
        io.write_all(&early).await.unwrap();
        io.shutdown().await.unwrap();
    })
    .await;
    let gateway = gateway(&far, pki).await;
    let mut client = gateway.connect_as("ana").await;
    client.write_all(&[exec_request("command=id", ""), b"very early".to_vec()].concat()).await.unwrap();
    let all = read_to_end(&mut client).await;
    assert_eq!(all.as_bytes(), [SWITCHING, b"right behindvery early"].concat());
    drop(client);
    gateway.stop().await;
}
