BEGIN TRANSACTION;
CREATE TABLE artifacts (
	process_id VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	created_us BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (process_id, "key"), 
	FOREIGN KEY(process_id) REFERENCES processes (id)
);
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0003','results/train_01k9x3q4zt8m2v7c0003/checkpoint ä.safetensors','checkpoint',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0003","key":"results/train_01k9x3q4zt8m2v7c0003/checkpoint ä.safetensors","kind":"checkpoint","name":"checkpoint.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0003','results/train_01k9x3q4zt8m2v7c0003/lora ä.safetensors','lora',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0003","key":"results/train_01k9x3q4zt8m2v7c0003/lora ä.safetensors","kind":"lora","name":"lora.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0004','results/train_01k9x3q4zt8m2v7c0004/checkpoint ä.safetensors','checkpoint',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0004","key":"results/train_01k9x3q4zt8m2v7c0004/checkpoint ä.safetensors","kind":"checkpoint","name":"checkpoint.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0004','results/train_01k9x3q4zt8m2v7c0004/lora ä.safetensors','lora',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0004","key":"results/train_01k9x3q4zt8m2v7c0004/lora ä.safetensors","kind":"lora","name":"lora.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0005','results/train_01k9x3q4zt8m2v7c0005/checkpoint ä.safetensors','checkpoint',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0005","key":"results/train_01k9x3q4zt8m2v7c0005/checkpoint ä.safetensors","kind":"checkpoint","name":"checkpoint.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
INSERT INTO "artifacts" VALUES('train_01k9x3q4zt8m2v7c0005','results/train_01k9x3q4zt8m2v7c0005/lora ä.safetensors','lora',1795694420000000,'{"process_id":"train_01k9x3q4zt8m2v7c0005","key":"results/train_01k9x3q4zt8m2v7c0005/lora ä.safetensors","kind":"lora","name":"lora.safetensors","size_bytes":7,"sha256":"0000000000000000000000000000000000000000000000000000000000000000","created_at":"2026-11-26T12:00:20Z","step":3,"index":null}');
CREATE TABLE log_lines (
	process_id VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (process_id, number), 
	FOREIGN KEY(process_id) REFERENCES processes (id)
);
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0003',1,'{"number":1,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"loading"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0003',2,'{"number":2,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"step 1 \u0000 🐈"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0003',3,'{"number":3,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":""}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0004',1,'{"number":1,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"loading"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0004',2,'{"number":2,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"step 1 \u0000 🐈"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0004',3,'{"number":3,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":""}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0005',1,'{"number":1,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"loading"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0005',2,'{"number":2,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":"step 1 \u0000 🐈"}');
INSERT INTO "log_lines" VALUES('train_01k9x3q4zt8m2v7c0005',3,'{"number":3,"attempt":1,"time":"2026-11-26T12:00:11Z","source":"engine","text":""}');
CREATE TABLE metrics (
	process_id VARCHAR NOT NULL, 
	step BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (process_id, step), 
	FOREIGN KEY(process_id) REFERENCES processes (id)
);
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0003',1,'{"step":1,"attempt":1,"time":"2026-11-26T12:00:11Z","loss":0.5,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0003',2,'{"step":2,"attempt":1,"time":"2026-11-26T12:00:12Z","loss":NaN,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0003',3,'{"step":3,"attempt":1,"time":"2026-11-26T12:00:13Z","loss":0.16666666666666666,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0004',1,'{"step":1,"attempt":1,"time":"2026-11-26T12:00:11Z","loss":0.5,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0004',2,'{"step":2,"attempt":1,"time":"2026-11-26T12:00:12Z","loss":NaN,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0004',3,'{"step":3,"attempt":1,"time":"2026-11-26T12:00:13Z","loss":0.16666666666666666,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0005',1,'{"step":1,"attempt":1,"time":"2026-11-26T12:00:11Z","loss":0.5,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0005',2,'{"step":2,"attempt":1,"time":"2026-11-26T12:00:12Z","loss":NaN,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
INSERT INTO "metrics" VALUES('train_01k9x3q4zt8m2v7c0005',3,'{"step":3,"attempt":1,"time":"2026-11-26T12:00:13Z","loss":0.16666666666666666,"learning_rate":0.0001,"grad_norm":null,"steps_per_s":null}');
CREATE TABLE process_counts (
	kind VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	count BIGINT NOT NULL, 
	PRIMARY KEY (kind, status)
);
INSERT INTO "process_counts" VALUES('generation','failed',0);
INSERT INTO "process_counts" VALUES('generation','cancelled',1);
INSERT INTO "process_counts" VALUES('training','completed',1);
INSERT INTO "process_counts" VALUES('training','running',1);
INSERT INTO "process_counts" VALUES('training','pending',1);
INSERT INTO "process_counts" VALUES('generation','completed',0);
INSERT INTO "process_counts" VALUES('training','failed',1);
INSERT INTO "process_counts" VALUES('generation','running',0);
INSERT INTO "process_counts" VALUES('training','cancelled',0);
INSERT INTO "process_counts" VALUES('generation','pending',1);
CREATE TABLE processes (
	id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	created_us BIGINT NOT NULL, 
	priority INTEGER NOT NULL, 
	enqueued_us BIGINT NOT NULL, 
	lease_expires_us BIGINT, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "processes" VALUES('train_01k9x3q4zt8m2v7c0001','training','pending',1795694400000000,0,1795694400000000,NULL,'{"id":"train_01k9x3q4zt8m2v7c0001","kind":"training","name":"waiting Größe 猫 \u0000","status":"pending","created_at":"2026-11-26T12:00:00Z","enqueued_at":"2026-11-26T12:00:00Z","updated_at":"2026-11-26T12:00:00Z","started_at":null,"ended_at":null,"priority":0,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"","detail":"","step":0,"total_steps":0,"loss":null,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"","lease":null,"cancel_requested_at":null,"attempt_count":0,"fruitless_attempts":0,"attempts":[],"worked_s":0.0,"dispatch":null,"error":null,"output_prefix":"","config_key":"configs/train_01k9x3q4zt8m2v7c0001/config.yaml","origin":null}');
INSERT INTO "processes" VALUES('gen_01k9x3q4zt8m2v7c0002','generation','pending',1795694401000000,1,1795694401000000,NULL,'{"id":"gen_01k9x3q4zt8m2v7c0002","kind":"generation","name":"waiting_generation Größe 猫 \u0000","status":"pending","created_at":"2026-11-26T12:00:01Z","enqueued_at":"2026-11-26T12:00:01Z","updated_at":"2026-11-26T12:00:01Z","started_at":null,"ended_at":null,"priority":1,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"","detail":"","step":0,"total_steps":0,"loss":null,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"","lease":null,"cancel_requested_at":null,"attempt_count":0,"fruitless_attempts":0,"attempts":[],"worked_s":0.0,"dispatch":null,"error":null,"output_prefix":"","config_key":"configs/gen_01k9x3q4zt8m2v7c0002/config.yaml","origin":null}');
INSERT INTO "processes" VALUES('train_01k9x3q4zt8m2v7c0003','training','running',1795694402000000,2,1795694402000000,1795694460000000,'{"id":"train_01k9x3q4zt8m2v7c0003","kind":"training","name":"running Größe 猫 \u0000","status":"running","created_at":"2026-11-26T12:00:02Z","enqueued_at":"2026-11-26T12:00:02Z","updated_at":"2026-11-26T12:00:30Z","started_at":"2026-11-26T12:00:10Z","ended_at":null,"priority":2,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"training","detail":"","step":3,"total_steps":9,"loss":0.1,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"cpu","lease":{"owner":"worker 1","token":"token of running","expires_at":"2026-11-26T12:01:00Z","length_s":30.0,"renewals":1},"cancel_requested_at":null,"attempt_count":1,"fruitless_attempts":0,"attempts":[{"number":1,"owner":"worker 1","device":"cpu","started_at":"2026-11-26T12:00:10Z","ended_at":null,"from_step":0,"to_step":0,"ending":""}],"worked_s":0.0,"dispatch":null,"error":null,"output_prefix":"","config_key":"configs/train_01k9x3q4zt8m2v7c0003/config.yaml","origin":null}');
INSERT INTO "processes" VALUES('train_01k9x3q4zt8m2v7c0004','training','completed',1795694403000000,3,1795694403000000,NULL,'{"id":"train_01k9x3q4zt8m2v7c0004","kind":"training","name":"completed Größe 猫 \u0000","status":"completed","created_at":"2026-11-26T12:00:03Z","enqueued_at":"2026-11-26T12:00:03Z","updated_at":"2026-11-26T12:01:30Z","started_at":"2026-11-26T12:00:10Z","ended_at":"2026-11-26T12:01:30Z","priority":3,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"","detail":"","step":9,"total_steps":9,"loss":0.1,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"cpu","lease":null,"cancel_requested_at":null,"attempt_count":1,"fruitless_attempts":0,"attempts":[{"number":1,"owner":"worker 1","device":"cpu","started_at":"2026-11-26T12:00:10Z","ended_at":"2026-11-26T12:01:30Z","from_step":0,"to_step":3,"ending":"completed"}],"worked_s":80.0,"dispatch":null,"error":null,"output_prefix":"results/x","config_key":"configs/train_01k9x3q4zt8m2v7c0004/config.yaml","origin":null}');
INSERT INTO "processes" VALUES('train_01k9x3q4zt8m2v7c0005','training','failed',1795694404000000,4,1795694404000000,NULL,'{"id":"train_01k9x3q4zt8m2v7c0005","kind":"training","name":"failed Größe 猫 \u0000","status":"failed","created_at":"2026-11-26T12:00:04Z","enqueued_at":"2026-11-26T12:00:04Z","updated_at":"2026-11-26T12:01:31Z","started_at":"2026-11-26T12:00:10Z","ended_at":"2026-11-26T12:01:31Z","priority":4,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"","detail":"","step":3,"total_steps":9,"loss":0.1,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"cpu","lease":null,"cancel_requested_at":null,"attempt_count":1,"fruitless_attempts":0,"attempts":[{"number":1,"owner":"worker 1","device":"cpu","started_at":"2026-11-26T12:00:10Z","ended_at":"2026-11-26T12:01:31Z","from_step":0,"to_step":3,"ending":"failed"}],"worked_s":81.0,"dispatch":null,"error":{"code":"out_of_memory","message":"the memory ran out","remedy":"","problems":["a","b"],"resumable":false},"output_prefix":"","config_key":"configs/train_01k9x3q4zt8m2v7c0005/config.yaml","origin":null}');
INSERT INTO "processes" VALUES('gen_01k9x3q4zt8m2v7c0006','generation','cancelled',1795694405000000,5,1795694405000000,NULL,'{"id":"gen_01k9x3q4zt8m2v7c0006","kind":"generation","name":"cancelled Größe 猫 \u0000","status":"cancelled","created_at":"2026-11-26T12:00:05Z","enqueued_at":"2026-11-26T12:00:05Z","updated_at":"2026-11-26T12:01:32Z","started_at":null,"ended_at":"2026-11-26T12:01:32Z","priority":5,"request_id":"","summary":{"base_model":"sd-1.5","rank":16,"none":null},"progress":{"phase":"","detail":"","step":0,"total_steps":0,"loss":null,"learning_rate":null,"steps_per_s":null,"eta_s":null},"device":"","lease":null,"cancel_requested_at":"2026-11-26T12:01:32Z","attempt_count":0,"fruitless_attempts":0,"attempts":[],"worked_s":0.0,"dispatch":null,"error":null,"output_prefix":"","config_key":"configs/gen_01k9x3q4zt8m2v7c0006/config.yaml","origin":null}');
CREATE TABLE registry_state (
	name VARCHAR NOT NULL, 
	value BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "registry_state" VALUES('schema_version',1);
INSERT INTO "registry_state" VALUES('queue_paused',0);
CREATE INDEX processes_lapsed ON processes (lease_expires_us, id);
CREATE INDEX processes_queue ON processes (status, kind, priority DESC, enqueued_us, id);
CREATE INDEX processes_newest ON processes (kind, status, created_us, id);
CREATE INDEX artifacts_newest ON artifacts (kind, created_us, process_id, "key");
COMMIT;
