-- Tenants, credentials and the audit log.
--
-- The roles exist before this runs. Who may see what is told by a policy for each command; a table without
-- one shows nothing. Only `auth`, `control` and `dispatch` see rows of several tenants, each only what it needs.

create table tenant (
    tenant_id  uuid primary key,
    name       text not null,
    slug       text not null,
    state      text not null check (state in ('active', 'suspended', 'deleted')),
    created_at timestamptz not null,
    updated_at timestamptz not null
);
-- A slug can be given again once its tenant is deleted; a tenant's id never is.
create unique index tenant_slug on tenant (slug) where state <> 'deleted';

create table api_key (
    tenant_id  uuid not null references tenant,
    key_id     text not null,
    digest     bytea not null check (length(digest) = 32),
    name       text not null,
    roles      text[] not null,
    namespaces text[],
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz,
    primary key (tenant_id, key_id)
);
-- Identifiers are drawn at random, 80 bits: the look-up goes by them alone, before a tenant is known.
create unique index api_key_lookup on api_key (key_id);

create table operator_key (
    key_id     text primary key,
    digest     bytea not null check (length(digest) = 32),
    name       text not null,
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);

-- Events of the whole deployment have the nil uuid for a tenant. body is the event's canonical text, kept as it
-- was hashed; a jsonb value would not give it back.
create table audit_event (
    tenant_id uuid not null,
    node      text not null,
    number    bigint not null,
    at        timestamptz not null,
    kind      text not null check (kind in ('admin', 'refusal', 'alarm', 'query', 'write')),
    body      text not null,
    previous  bytea not null check (length(previous) = 32),
    hash      bytea not null check (length(hash) = 32),
    primary key (tenant_id, node, number)
);
create index audit_event_time on audit_event (tenant_id, at, node, number);
create table audit_head (
    tenant_id uuid not null,
    node      text not null,
    number    bigint not null,
    hash      bytea not null check (length(hash) = 32),
    primary key (tenant_id, node)
) with (fillfactor = 50);
