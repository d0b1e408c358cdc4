-- Whose leases are whose, and which jobs read files.

-- leased_by: the data folder whose server holds the lease. Its next server, which holds the folder's lock, frees
-- what an earlier one held when it ended. upload: the job reads a file, which may hang its parser.
alter table job add column leased_by uuid, add column upload boolean not null default false;
grant select (leased_by, upload) on job to bulkhead_dispatch;
grant update (leased_by) on job to bulkhead_dispatch;
