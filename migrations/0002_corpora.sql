-- What a tenant owns: namespaces, documents, chunks, embeddings, mentions, jobs.

-- seq is the corpus' history: incremented by every writing transaction, whose row lock makes commit order
-- equal seq order without gaps. chunks is the N of the inverse document frequency.
create table namespace (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    name         text not null,
    model_id     text not null,
    seq          bigint not null default 0,
    chunks       bigint not null default 0,
    created_at   timestamptz not null,
    primary key (tenant_id, namespace_id),
    unique (tenant_id, name)
) with (fillfactor = 50);

create table document (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    document_id  text not null,
    version      bigint not null,
    live_version bigint,
    status       text not null,
    file_name    text not null,
    content_hash bytea not null,
    content_length bigint not null,
    content_summary text not null,
    chunks_count integer,
    error        text,
    metadata     jsonb not null default '{}',
    track_id     text not null,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (tenant_id, namespace_id, document_id)
);
create index document_listing on document (tenant_id, namespace_id, updated_at desc, document_id);
create index document_track on document (tenant_id, track_id);
create index document_name on document (tenant_id, namespace_id, file_name);
create index document_content on document (tenant_id, namespace_id, content_hash);

-- What a version says. The text of a plain insert is in body, an uploaded file in the uploads' folder.
create table document_version (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    document_id  text not null,
    version      bigint not null,
    title        text,
    file_name    text not null,
    metadata     jsonb not null,
    body         text,
    upload_id    uuid,
    created_at   timestamptz not null,
    primary key (tenant_id, namespace_id, document_id, version),
    check ((body is null) <> (upload_id is null))
);

create table chunk (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    chunk_id     uuid not null,
    document_id  text not null,
    version      bigint not null,
    ordinal      integer not null,
    seq          bigint not null,
    heading      text,
    text         text not null,
    tokens       integer not null,
    text_hash    bytea not null,
    primary key (tenant_id, namespace_id, chunk_id)
);
create index chunk_document on chunk (tenant_id, namespace_id, document_id, ordinal);
create index chunk_history on chunk (tenant_id, namespace_id, seq);

-- Partitioned by model; a model's partition is made when the model is first used.
create table chunk_embedding (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    model_id     text not null,
    chunk_id     uuid not null,
    version      bigint not null,
    seq          bigint not null,
    embedding    vector not null,
    terms        sparsevec not null,
    primary key (tenant_id, namespace_id, model_id, chunk_id)
) partition by list (model_id);
create index chunk_embedding_history on chunk_embedding (tenant_id, namespace_id, seq);

-- One row a chunk. Names are merged when read, so that a deleted document leaves nothing behind.
-- kinds, descriptions and the relation columns have room for what a language model finds.
create table chunk_mention (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    chunk_id     uuid not null,
    seq          bigint not null,
    keys         bigint[] not null,
    names        text[] not null,
    kinds        text[] not null,
    counts       smallint[] not null,
    descriptions text[],
    relation_sources smallint[],
    relation_targets smallint[],
    relation_keywords text[],
    relation_descriptions text[],
    relation_weights real[],
    primary key (tenant_id, namespace_id, chunk_id)
);
create index chunk_mention_history on chunk_mention (tenant_id, namespace_id, seq);

-- In how many chunks a hashed term occurs.
create table term_frequency (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    term         integer not null,
    chunks       integer not null,
    primary key (tenant_id, namespace_id, term)
) with (fillfactor = 70);

-- One row for each writing transaction, for projections that are behind. Additions are found by the seq of
-- their rows; removals are named here. Goes when every registered consumer has passed it.
create table outbox (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    seq          bigint not null,
    at           timestamptz not null,
    removed      uuid[] not null,
    primary key (tenant_id, namespace_id, seq)
);
create table consumer (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    consumer     text not null,
    seq          bigint not null,
    updated_at   timestamptz not null,
    primary key (tenant_id, namespace_id, consumer)
);

create table job (
    tenant_id    uuid not null,
    job_id       uuid not null,
    namespace_id uuid not null,
    kind         text not null check (kind in ('ingest', 'purge_namespace', 'purge_tenant')),
    document_id  text,
    version      bigint,
    track_id     text,
    state        text not null check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    stage        text not null default 'pending',
    done         bigint not null default 0,
    total        bigint not null default 0,
    rate         real not null default 0,
    revision     bigint not null default 0,
    cost         bigint not null,
    attempts     integer not null default 0,
    lease        uuid,
    leased_until timestamptz,
    due_at       timestamptz not null,
    error        text,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (tenant_id, job_id)
);
create index job_track on job (tenant_id, track_id);
create index job_document on job (tenant_id, namespace_id, document_id);
create index job_due on job (tenant_id, due_at) where state in ('queued', 'running');

create table idempotency (
    tenant_id    uuid not null,
    namespace_id uuid not null,
    principal    text not null,
    operation    text not null,
    key          text not null,
    body_hash    bytea not null,
    document_ids text[] not null,
    status       smallint not null,
    answer       jsonb not null,
    created_at   timestamptz not null,
    primary key (tenant_id, namespace_id, principal, operation, key)
);
