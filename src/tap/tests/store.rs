//! Stores that fail.

use std::fmt;
use std::sync::atomic::AtomicUsize;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::*;

/// How a store behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Works,
    /// Nobody answers.
    Down,
    /// Does what it is asked for, and the answer is lost.
    Deaf,
    /// Takes a part and breaks.
    Breaks,
    /// Answers nothing at all.
    Silent,
}

/// A store in memory that behaves as a test says, and counts what was put.
#[derive(Debug, Clone, Default)]
struct Moody {
    inner: Arc<InMemory>,
    mood: Arc<Mutex<Mood>>,
    puts: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Parts(Box<dyn MultipartUpload>, Moody);

fn down() -> object_store::Error {
    object_store::Error::Generic { store: "test", source: "connection refused".into() }
}

impl Moody {
    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn begin(&self) -> Result<Mood> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Down => Err(down()),
            Mood::Silent => std::future::pending().await,
            mood => Ok(mood),
        }
    }

    fn end<T>(&self, mood: Mood, done: Result<T>) -> Result<T> {
        match mood {
            Mood::Deaf => done.and(Err(down())),
            _ => done,
        }
    }

    /// Everything that is there.
    async fn all(&self) -> Vec<(String, usize)> {
        let listed: Vec<_> = self.inner.list(None).collect().await;
        let mut all: Vec<_> = listed
            .into_iter()
            .map(|meta| meta.unwrap())
            .map(|meta| (meta.location.to_string(), usize::try_from(meta.size).unwrap()))
            .collect();
        all.sort();
        all
    }
}

impl fmt::Display for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("moody")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Moody {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mood = self.begin().await?;
        let done = self.inner.put_opts(path, payload, options).await;
        self.puts.fetch_add(usize::from(done.is_ok()), Ordering::Relaxed);
        self.end(mood, done)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.begin().await?;
        let upload = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(Parts(upload, self.clone())))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.begin().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[async_trait::async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (put, store) = (self.0.put_part(data), self.1.clone());
        Box::pin(async move {
            let mood = store.begin().await?;
            put.await?;
            if mood == Mood::Breaks { Err(down()) } else { Ok(()) }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mood = self.1.begin().await?;
        let done = self.0.complete().await;
        self.1.puts.fetch_add(usize::from(done.is_ok()), Ordering::Relaxed);
        self.1.end(mood, done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.0.abort().await
    }
}

fn over(store: &Moody) -> Option<Store> {
    Some(Store::new(Arc::new(store.clone())))
}

fn rig(store: &Moody) -> Rig {
    Rig::at(tempfile::tempdir().unwrap(), SigningKey::generate().unwrap(), over(store), 1 << 30)
}

/// A session that says so many bytes; the id of its recording.
async fn record(rig: &Rig, bytes: usize) -> String {
    let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
    for part in noise(bytes, bytes as u64).chunks(60_000) {
        session.says(OUT, part).await.unwrap();
    }
    session.ends().await.unwrap().id
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_a_store_loses_nothing_and_doubles_nothing() {
    let store = Moody::default();
    store.is(Mood::Down);
    let rig = rig(&store);
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(record(&rig, 1000 * n).await);
        // What cannot be answered takes its minute, and what is refused as long as the pauses grow.
        store.is(if n % 2 == 0 { Mood::Silent } else { Mood::Down });
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let asked = store.asked.load(Ordering::Relaxed);
    assert!((40..=200).contains(&asked), "{asked} requests in an hour");
    assert_eq!((store.all().await.len(), rig.names().len()), (0, 12));
    assert!(rig.metrics.recording.upload_failures.get() > 20);
    assert!(timeout(Duration::from_secs(1), rig.recordings.settled()).await.is_err());

    store.is(Mood::Works);
    soon_enough(&rig).await;
    let key = rig.key.verifying().id().to_owned();
    let mut expected = vec![format!("keys/{key}.pem")];
    for id in ids {
        expected.push(format!("2026/03/04/{id}.json"));
        expected.push(format!("2026/03/04/{id}.tape.zst"));
    }
    expected.sort();
    let all: Vec<_> = store.all().await.into_iter().map(|(path, _)| path).collect();
    assert_eq!(all, expected);
    assert_eq!(store.puts.load(Ordering::Relaxed), expected.len(), "each was put once");
    assert_eq!((rig.metrics.recording.waiting.get(), rig.metrics.recording.spool.get()), (0, 0));
}

/// The longest pause, and a little.
async fn soon_enough(rig: &Rig) {
    let settled = async {
        rig.recordings.settled().await;
        while !rig.names().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(90), settled).await.expect("the store has everything");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_no_error_and_an_upload_that_breaks_begins_anew() {
    for (mood, bytes) in [(Mood::Deaf, 1000), (Mood::Deaf, 20_000_000), (Mood::Breaks, 20_000_000)] {
        let store = Moody::default();
        let rig = rig(&store);
        // Its key is there; then answers get lost.
        soon("the key", async {
            while store.puts.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        store.is(mood);
        let id = record(&rig, bytes).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(rig.metrics.recording.upload_failures.get() > 0);
        store.is(Mood::Works);
        soon_enough(&rig).await;
        assert_eq!(store.puts.load(Ordering::Relaxed), 3, "{mood:?}: the key, the recording and its card");
        let path = Path::from(format!("2026/03/04/{id}.tape.zst"));
        let got = store.inner.get(&path).await.unwrap().bytes().await.unwrap();
        let file = rig.folder.path().join("got");
        fs::write(&file, &got).unwrap();
        assert!(read(&file, &rig.key).of(Kind::Stdout) == noise(bytes, bytes as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_to_the_store_after_a_restart_and_nothing_is_written_over() {
    let (store, other) = (Moody::default(), Moody::default());
    store.is(Mood::Down);
    let rig = rig(&store);
    let (foreign, id) = (record(&rig, 5000).await, record(&rig, 6000).await);
    let path = Path::from(format!("2026/03/04/{foreign}.tape.zst"));
    other.inner.put(&path, PutPayload::from_static(b"somebody else's")).await.unwrap();
    let rig = rig.again(over(&other)).await;
    soon("its upload", async {
        while rig.names().len() > 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let all = other.all().await;
    assert!(all.iter().any(|(path, _)| *path == format!("2026/03/04/{id}.tape.zst")), "{all:?}");
    assert!(all.contains(&(path.to_string(), 15)), "{all:?}");
    assert_eq!(rig.names(), [format!("{foreign}.json"), format!("{foreign}.tape.zst")]);
}
