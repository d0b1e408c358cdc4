//! `bulkhead eval`: quality of retrieval on a set of questions with known answers.

use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;
use serde_json::json;

use super::Settings;
use super::measured::{Measured, machine, peak_memory_mib, unless_interrupted};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::lexical::Lexicon;
use crate::eval::client::Client;
use crate::eval::dataset::DataSet;
use crate::eval::figures::{Row, progress, table};
use crate::eval::neighbours;
use crate::eval::retrieval::{self, Inside, Options, Report};
use crate::inference::Embedder;

/// What is evaluated, and on what.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Folders of sets.
    pub folders: Vec<PathBuf>,
    /// Bounds and form.
    pub options: Options,
    /// Tenants that are made beside each set's own; then each tenant's index is compared with exact search.
    pub neighbours: usize,
    /// A server that runs, and a writer's key; absent: one of its own.
    pub server: Option<(String, SecretString)>,
    /// The namespace in it.
    pub namespace: String,
    /// Where vectors are kept by the hash of their text.
    pub vector_cache: Option<PathBuf>,
    /// Where the figures go as JSON.
    pub output: Option<PathBuf>,
    /// Print JSON instead of tables.
    pub json: bool,
}

/// Measures each set, prints tables, and writes the figures if asked to. Whether every target is reached.
///
/// # Errors
/// Says what could not be read, had or measured.
pub async fn retrieval(mut settings: Settings, evaluation: &Evaluation) -> anyhow::Result<bool> {
    let sets: Vec<DataSet> =
        evaluation.folders.iter().map(|folder| DataSet::read(folder)).collect::<Result<_, _>>()?;
    settings.embedding.vector_cache.clone_from(&evaluation.vector_cache);
    let reports = match &evaluation.server {
        Some((url, key)) => {
            let mut reports = Vec::new();
            for set in &sets {
                let client = Client::new(url, key.clone(), &evaluation.namespace);
                let report = retrieval::run(&client, None, set, &evaluation.options, &SystemClock).await?;
                print(&report, evaluation);
                reports.push(report);
            }
            reports
        }
        None => Box::pin(own(settings, evaluation, &sets)).await?,
    };
    let figures = json!({
        "machine": machine(),
        "version": env!("CARGO_PKG_VERSION"),
        "date": SystemClock.now().to_rfc3339(),
        "vectors_cached": evaluation.vector_cache.is_some(),
        "joined": evaluation.options.join,
        "peak_memory_mib": peak_memory_mib(),
        "sets": reports,
    });
    let figures = serde_json::to_string_pretty(&figures)? + "\n";
    if let Some(file) = &evaluation.output {
        std::fs::write(file, &figures)?;
    }
    if evaluation.json {
        print!("{figures}");
    }
    Ok(reports.iter().flat_map(|report| &report.rows).all(|row| row.holds))
}

/// Measures on a server of its own, each set as a tenant of its own.
async fn own(settings: Settings, evaluation: &Evaluation, sets: &[DataSet]) -> anyhow::Result<Vec<Report>> {
    let folder = std::env::temp_dir().join(format!("bulkhead-eval-{}", std::process::id()));
    let embedding = settings.embedding.clone();
    let lexicon = Arc::new(Lexicon::new(settings.lexical));
    let embedder = tokio::task::spawn_blocking(move || Embedder::load(&embedding)).await??;
    let measured = Box::pin(Measured::start(settings, &folder)).await?;
    let http = reqwest::Client::new();
    let run = async {
        let mut reports = Vec::new();
        for set in sets {
            let side = Side { measured: &measured, lexicon: &lexicon, embedder: &embedder, http: &http };
            let own = side.tenant(&set.name, &evaluation.namespace).await?;
            let clock = measured.clock();
            let mut report =
                retrieval::run(&own.0, Some(&own.1), set, &evaluation.options, clock.as_ref()).await?;
            if evaluation.neighbours > 0 {
                report.rows.push(side.beside_neighbours(own, set, evaluation).await?);
            }
            print(&report, evaluation);
            reports.push(report);
        }
        Ok(reports)
    };
    let reports = unless_interrupted(run).await;
    Box::pin(measured.stop()).await?;
    reports
}

/// A measured server, with what looks inside.
struct Side<'a> {
    measured: &'a Measured,
    lexicon: &'a Arc<Lexicon>,
    embedder: &'a Embedder,
    /// Connections of all tenants.
    http: &'a reqwest::Client,
}

impl Side<'_> {
    /// A tenant's way in, and its inside.
    async fn tenant(&self, name: &str, namespace: &str) -> anyhow::Result<(Client, Inside)> {
        let tenant = self.measured.tenant(name).await?;
        let client = Client::over(self.http.clone(), &self.measured.url(), tenant.key, namespace);
        let reader = self.measured.reader(tenant.id).await?;
        let inside = Inside { reader, lexicon: Arc::clone(self.lexicon), embedder: self.embedder.clone() };
        Ok((client, inside))
    }

    /// The least recall of an index over the set's own tenant and its neighbours.
    async fn beside_neighbours(
        &self,
        own: (Client, Inside),
        set: &DataSet,
        evaluation: &Evaluation,
    ) -> anyhow::Result<Row> {
        let bar = progress(&format!("{}: neighbours", set.name), 2 * evaluation.neighbours);
        let mut tenants = vec![own];
        for number in 0..evaluation.neighbours {
            let name = format!("{} {number}", set.name);
            let tenant = self.tenant(&name, &evaluation.namespace).await?;
            neighbours::settle(&tenant.0, set, number).await?;
            tenants.push(tenant);
            bar.inc(1);
        }
        let mut recalls = Vec::with_capacity(tenants.len());
        for (number, (client, inside)) in tenants.iter().enumerate() {
            recalls.push(neighbours::recall(client, inside, &set.questions, number).await?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(neighbours::row(&set.name, &recalls))
    }
}

fn print(report: &Report, evaluation: &Evaluation) {
    if evaluation.json {
        return;
    }
    print!("{}", report.table());
    match report.ingestion_seconds {
        Some(seconds) => println!("ingested in {seconds:.1} s"),
        None => println!("the documents were there already"),
    }
    if let Some(folder) = &evaluation.vector_cache {
        println!("vectors may come from {}: times are no measure of the model", folder.display());
    }
    if evaluation.server.is_none()
        && let Some(memory) = peak_memory_mib()
    {
        println!("most memory of server and measurement, without the database: {memory} MiB");
    }
    println!("{}", table(&report.rows));
}
