// Score as k6 calls it: requests from WORKLOAD, `closed` with VUS callers or `open` with RATE arrivals a second.
import grpc from "k6/net/grpc";
import { check } from "k6";
import { SharedArray } from "k6/data";
import { scenario } from "k6/execution";

const requests = new SharedArray("requests", () => {
  const { queries, candidates, sequence } = JSON.parse(open(__ENV.WORKLOAD));
  return sequence.map((request) => ({
    tasks: request.map(([query, list]) => ({ query: queries[query], document_ids: candidates[list] })),
  }));
});

const duration = `${__ENV.SECONDS}s`;
const load =
  __ENV.LOAD === "closed"
    ? { executor: "constant-vus", vus: Number(__ENV.VUS), duration }
    : {
        executor: "constant-arrival-rate",
        rate: Number(__ENV.RATE),
        timeUnit: "1s",
        duration,
        preAllocatedVUs: Number(__ENV.VUS),
      };

export const options = {
  scenarios: { load: { ...load, gracefulStop: "2s" } },
  summaryTrendStats: ["med", "p(99)", "count"],
};

const client = new grpc.Client();
client.load([__ENV.PROTOS], "twinbert/v1/scorer.proto");
let connected = false;

export default function () {
  if (!connected) {
    client.connect(__ENV.ADDRESS, { plaintext: true });
    connected = true;
  }
  const request = requests[scenario.iterationInTest % requests.length];
  const answer = client.invoke("twinbert.v1.ScorerService/Score", request);
  check(answer, { OK: (it) => it.status === grpc.StatusOK });
}

export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data.metrics) };
}
