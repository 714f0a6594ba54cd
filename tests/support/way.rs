//! A way to a server that can be cut: calls go in and no answer comes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A way to a server, which can be made to swallow what is sent.
pub(crate) struct Way {
    pub(crate) url: String,
    swallows: Arc<AtomicBool>,
    swallowed: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl Way {
    pub(crate) async fn to(server: &str) -> Self {
        let to = server.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (swallows, swallowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (mut connections, flags) = (JoinSet::new(), (swallows.clone(), swallowed.clone()));
        connections.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                let server = TcpStream::connect(&to).await.expect("the server");
                open.spawn(pass(client, server, flags.clone()));
            }
        });
        Self { url, swallows, swallowed, _connections: connections }
    }

    /// From now on no call is answered.
    pub(crate) fn swallow(&self) {
        self.swallows.store(true, SeqCst);
    }

    /// From now on calls are answered again.
    #[allow(dead_code, reason = "each test file that has this module uses a part of it")]
    pub(crate) fn heal(&self) {
        self.swallows.store(false, SeqCst);
    }

    /// How many calls were swallowed.
    pub(crate) fn swallowed(&self) -> usize {
        self.swallowed.load(SeqCst)
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    (swallows, swallowed): (Arc<AtomicBool>, Arc<AtomicUsize>),
) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            Ok(count @ 1..) = client.read(&mut asked) => {
                if swallows.load(SeqCst) {
                    swallowed.fetch_add(usize::from(asked.starts_with(b"POST")), SeqCst);
                } else if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
            }
            Ok(count @ 1..) = server.read(&mut answered) => {
                if client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}
