/** The metrics that the dashboard reads, by what they are for. One that is absent leaves its place empty. */
export const NAMES = {
  requests: "flambeau_requests_total",
  seconds: "flambeau_stage_seconds",
  batchSize: "flambeau_batch_size",
  rejections: "flambeau_rejections_total",
  queueItems: "flambeau_queue_items",
  queueBytes: "flambeau_queue_bytes",
  workers: "flambeau_workers",
  restarts: "flambeau_worker_restarts_total",
  nodes: "flambeau_worker_nodes",
  memory: "flambeau_worker_memory_bytes",
  ready: "flambeau_model_ready",
};
