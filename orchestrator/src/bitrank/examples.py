"""What the command line's help pages show."""

RUN = """examples:
  bitrank run --config B-FP --task movie_sentences
  bitrank run --config Joint-3 --task wiki_articles --max-steps 10 --seed 1
  bitrank run --config B-Q4 --task sst2 --model bert-base-uncased --quant-backend cpu-int8
  bitrank run --config B-FP --task reviews.csv --model ./my-bert --set learning_rate=1e-3
  bitrank run --config B-Q4 --task wiki_articles --processes 2
  bitrank run --plan my-plan.json --task wiki_articles"""
MATRIX = """examples:
  bitrank matrix                                   all six configs on both tasks of profile laptop
  bitrank matrix --configs B-FP,Joint-2 --seeds 0,1,2
  bitrank matrix --profile paper --store http://127.0.0.1:5000
  WANDB_MODE=offline bitrank matrix --wandb        Weights & Biases hears of it too
  bitrank matrix --profile paper --store http://tracking:5000 --executor ray --ray-address head:6379
  bitrank matrix --profile smoke --force"""
LIST = """examples:
  bitrank list
  bitrank list --profile paper --json"""
SQL = """examples:
  bitrank sql 'SELECT run_name, status, "m.eval/acc", "m.eval/ppl", "m.model/mib" FROM wide ORDER BY 1'
  bitrank sql "SELECT run_id, step, value FROM metrics WHERE key = 'train/loss'" --format csv > loss.csv
  bitrank sql "SELECT format, count(*), sum(rank) FROM plans GROUP BY ALL" --format json
views: runs params tags metrics final_metrics wide predictions ranks plans specs unread"""
REPORT = """examples:
  bitrank report                                   the page in results/report/report.html
  bitrank report --profile paper --out paper-report
  bitrank report --store postgresql://me@host/mlflow --ui-url http://host:5000"""
PAPER = """examples:
  bitrank paper                                    the paper's numbers, tables, figures and claims in paper/generated
  bitrank paper --profile paper --store sqlite:////data/runs/mlflow.db
  bitrank paper --configs B-FP,B-Q4,Joint-2 --out draft/generated"""
DOCTOR = """examples:
  bitrank doctor
  bitrank doctor --json
  bitrank doctor --verify"""
UI = """examples:
  bitrank ui
  bitrank ui --port 5001 --store /data/runs"""
