package org.apache.spark.sql.tfspark

import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan
import org.apache.spark.sql.execution.SparkPlan
import org.apache.spark.sql.internal.SQLConf

/** Calls that Spark allows only from its own packages. */
object Planning {

  /** Spark's own operators for a plan.
    *
    * @param other any operator of the same session
    */
  def operators(plan: LogicalPlan, other: SparkPlan): Seq[SparkPlan] = other.session.sessionState.planner.BasicOperators(plan)

  /** Make an operator with the settings of a session in which Spark sends each row to Python at once. */
  def rowByRow(other: SparkPlan)(make: => SparkPlan): SparkPlan = {
    // An operator takes its settings from the session that is active when the operator is made.
    val session = other.session.cloneSession()
    session.conf.set(SQLConf.ARROW_EXECUTION_MAX_RECORDS_PER_BATCH.key, 1L)
    session.withActive(make)
  }
}
